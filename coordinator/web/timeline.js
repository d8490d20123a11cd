// The last steps over the stages: when each stage computed which.

import { byId, setText, svg, watchWidth } from "./dom.js";
import { digits, micros, plural, shorten } from "./format.js";

const SHOWN = 40;
const KEPT = 256;
// Steps further apart belong to different bursts of work; drawing the silence between them would leave no room for them.
const BURST_MS = 200;
const ROW = 24;
const AXIS = 20;

const holder = byId("timeline");
let steps = [];
let names = [];
let changed = true;

const width = watchWidth(holder, () => draw());

export function forgetSteps() {
  steps = [];
  changed = true;
}

export function takeSteps(more) {
  steps = [...steps, ...more].slice(-KEPT);
  changed = true;
}

export function timeline(status) {
  const now = status.stages.map((stage) => stage.name);
  if (!changed && now.join() === names.join()) return;
  changed = false;
  names = now;
  draw();
}

function burst() {
  // A step of another plan has other stages.
  const shown = steps.filter((step) => step.stages.length === names.length).sort((a, b) => a.sent_ms - b.sent_ms).slice(-SHOWN);
  let first = shown.length - 1;
  while (first > 0 && shown[first].sent_ms - (shown[first - 1].sent_ms + shown[first - 1].took_us / 1000) < BURST_MS) first -= 1;
  return shown.slice(Math.max(first, 0));
}

function draw() {
  const shown = burst();
  if (shown.length === 0) {
    holder.replaceChildren(Object.assign(document.createElement("p"), { className: "empty", textContent: "No step has come home yet." }));
    setText(byId("timeline-facts"), "");
    return;
  }
  const available = Math.max(width(), 240);
  const left = available < 480 ? 64 : 96;
  const start = shown[0].sent_ms;
  const end = Math.max(...shown.map((step) => step.sent_ms + step.took_us / 1000));
  const span = Math.max(end - start, 0.001);
  const scale = (available - left - 8) / span;
  const x = (ms) => left + (ms - start) * scale;
  const height = names.length * ROW + AXIS;
  const parts = [];
  for (const at of ticks(span)) {
    const tick = (left + at * scale).toFixed(1);
    parts.push(svg("path", { class: "grid", d: `M${tick} 0V${height - AXIS}` }));
    parts.push(svg("text", { class: "tick", x: tick, y: height - 6, "text-anchor": "middle", text: at === 0 ? "0" : `${digits(at)} ms`.replace(".00", "").replace(/\.0 /, " ") }));
  }
  names.forEach((name, row) => {
    parts.push(svg("text", { class: "row-name", x: 0, y: row * ROW + ROW / 2 + 4, text: shorten(name, left < 80 ? 8 : 13) }));
    parts.push(svg("path", { class: "base", d: `M${left} ${row * ROW + ROW - 0.5}H${available}` }));
  });
  const lines = { trail: "", queued: "" };
  const bars = shown.map((step) => drawStep(step, x, scale, lines));
  parts.push(svg("path", { class: "trail", d: lines.trail }), svg("path", { class: "queued", d: lines.queued }), ...bars);
  const label = `The last ${plural(shown.length, "step")} over ${plural(names.length, "stage")}, ${digits(span)} ms`;
  holder.replaceChildren(svg("svg", { width: available, height, viewBox: `0 0 ${available} ${height}`, role: "img", "aria-label": label },
    svg("defs", {}, svg("pattern", { id: "hatch", width: 5, height: 5, patternUnits: "userSpaceOnUse", patternTransform: "rotate(45)" },
      svg("rect", { width: 5, height: 5, class: "hatch-ground" }), svg("rect", { width: 2.5, height: 5, class: "hatch-line" }))),
    ...parts));
  setText(byId("timeline-facts"), `last ${shown.length} within ${digits(span)} ms`);
}

// One shape for all that the stages computed of a step; how long it waited, and its way, go to what others have, too.
function drawStep(step, x, scale, lines) {
  let bars = "";
  const words = [`step ${step.step}: ${step.kind} of ${plural(step.rows, "row")}, ${micros(step.took_us)}`];
  step.stages.forEach((stage, row) => {
    const came = x(step.sent_ms + stage.came_us / 1000);
    const began = came + (stage.queued_us / 1000) * scale;
    const long = Math.max((stage.computed_us / 1000) * scale, 1);
    const [top, middle] = [row * ROW + 5, row * ROW + ROW / 2];
    bars += `M${began.toFixed(1)} ${top}h${long.toFixed(1)}v${ROW - 10}h${(-long).toFixed(1)}Z`;
    lines.trail += `${row === 0 ? "M" : "L"}${began.toFixed(1)} ${middle}L${(began + long).toFixed(1)} ${middle}`;
    if (began - came > 0.5) lines.queued += `M${came.toFixed(1)} ${top + ROW - 8}H${began.toFixed(1)}`;
    words.push(`${names[row]}: waited ${micros(stage.queued_us)}, computed ${micros(stage.computed_us)}`);
  });
  return svg("path", { class: step.kind, d: bars }, svg("title", { text: words.join("\n") }));
}

// Round times, four to eight of them.
function ticks(span) {
  const rough = span / 5;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((one) => one >= rough);
  const found = [];
  for (let at = 0; at < span * 0.97; at += step) found.push(Number(at.toPrecision(6)));
  return found;
}
