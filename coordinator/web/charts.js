// The figures at the top, with their last ten minutes. What has been is kept in this page alone.

import { byId, el, setAttribute, setText, svg } from "./dom.js";
import { count, digits, millis, percent, seconds } from "./format.js";

const SPAN_MS = 10 * 60 * 1000;
// What is shown at first, so that a page that was just opened shows more than a dot.
const LEAST_SPAN_MS = 60 * 1000;
const SAMPLE_MS = 1000;
// Samples further apart are not joined: nobody knows what was between them.
const GAP_MS = 6000;

const FIGURES = [
  { name: "Generated", unit: "tokens/s", value: (s) => s.rates.generated_tokens_per_s, show: digits },
  { name: "Prompts", unit: "tokens/s", value: (s) => s.rates.prompt_tokens_per_s, show: digits },
  { name: "First token, median", unit: "", value: (s) => s.rates.ttft_ms_p50 || null, show: millis },
  { name: "Next token, median", unit: "", value: (s) => s.rates.itl_ms_p50 || null, show: millis },
  { name: "Running", unit: (s) => `${count(s.requests.waiting)} waiting`, value: (s) => s.requests.running, show: count },
  {
    name: "Cache in use",
    unit: "",
    most: 1,
    below: (s) => `of ${count(s.cache_tokens)} tokens`,
    value: (s) => (s.cache_tokens ? s.cache_tokens_reserved / s.cache_tokens : null),
    show: percent,
  },
];

const WIDTH = 200;
const HEIGHT = 44;

const parts = FIGURES.map((figure) => {
  const [value, unit, most] = [el("span", { class: "value" }), el("span", { class: "muted" }), el("p", { class: "most muted" })];
  const [area, line] = [svg("path", { class: "area" }), svg("path", { class: "line" })];
  const picture = svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", role: "img" }, area, line);
  const node = el("article", { class: "panel figure" }, el("h3", { text: figure.name }), el("p", {}, value, " ", unit), most, el("div", { class: "chart" }, picture));
  return { ...figure, node, value: figure.value, valueNode: value, unitNode: unit, mostNode: most, area, line, picture };
});
byId("figures").append(...parts.map((part) => part.node));

let samples = [];

export function sample(status, now) {
  const last = samples.at(-1);
  if (last && now - last.at < SAMPLE_MS * 0.9) return;
  samples.push({ at: now, values: FIGURES.map((figure) => figure.value(status)) });
  const old = samples.findIndex((one) => now - one.at <= SPAN_MS);
  if (old > 0) samples = samples.slice(old);
}

export function charts(status, now) {
  const span = Math.min(Math.max(samples.length > 0 ? now - samples[0].at : 0, LEAST_SPAN_MS), SPAN_MS);
  parts.forEach((part, place) => {
    const value = part.value(status);
    setText(part.valueNode, value === null ? "–" : part.show(value));
    const unit = typeof part.unit === "function" ? part.unit(status) : part.unit;
    setText(part.unitNode, unit);
    const known = samples.map((one) => one.values[place]).filter((one) => one !== null);
    const highest = known.reduce((most, one) => Math.max(most, one), 0);
    const top = part.most ?? (highest > 0 ? highest * 1.1 : 1);
    setText(part.mostNode, part.below ? part.below(status) : highest > 0 ? `most ${part.show(highest)} in ${seconds(Math.ceil(span / 60000) * 60)}` : "");
    setAttribute(part.picture, "aria-label", `${part.name} over the last ${seconds(span / 1000)}: now ${value === null ? "unknown" : part.show(value)}, at most ${part.show(highest)}`);
    const { line, area } = paths(place, top, now, span);
    part.line.setAttribute("d", line);
    part.area.setAttribute("d", area);
  });
}

function paths(place, top, now, span) {
  let [line, area] = ["", ""];
  let run = [];
  const end = () => {
    if (run.length > 0) {
      const points = run.map(([x, y]) => `${x} ${y}`).join("L");
      line += `M${points}`;
      area += `M${run[0][0]} ${HEIGHT}L${points}L${run.at(-1)[0]} ${HEIGHT}Z`;
    }
    run = [];
  };
  let before = null;
  for (const { at, values } of samples) {
    const value = values[place];
    if (value === null || (before !== null && at - before > GAP_MS)) end();
    before = at;
    if (value === null) continue;
    const x = (WIDTH * (1 - (now - at) / span)).toFixed(1);
    run.push([x, (HEIGHT - 1 - (HEIGHT - 3) * Math.min(value / top, 1)).toFixed(1)]);
  }
  end();
  return { line, area };
}
