// A card for each shard and for each worker without one.

import { byId, el, keyed, setAttribute, setHidden, setText } from "./dom.js";
import { bytes, bytesPerSecond, layers, micros, percent, seconds, sizes } from "./format.js";
import { stateOf } from "./topology.js";
import { pill, worse } from "./summary.js";

const MEMORY = ["weights", "cache", "workspace"];
const TIMES = ["decode", "prefill", "waited"];

function make(item) {
  const [title, place, where] = [el("h3"), el("span", { class: "place", "aria-hidden": "true" }), el("p", { class: "muted where" })];
  const state = pill();
  const advice = el("p", { class: "advice", hidden: true });
  const segments = MEMORY.map((name) => el("i", { class: name }));
  const bar = el("div", { class: "memory", role: "img" }, ...segments);
  const memory = el("p", { class: "muted small" });
  const cells = TIMES.map(() => Array.from({ length: 3 }, () => el("td", { class: "number" })));
  const times = el("table", { class: "times" },
    el("thead", {}, el("tr", {}, el("td"), ...["median", "p99", "predicted"].map((text) => el("th", { scope: "col", class: "number", text })))),
    el("tbody", {}, ...TIMES.map((name, row) => el("tr", {}, el("th", { scope: "row", text: name }), ...cells[row]))));
  const shares = ["of the step", "busy"].map((name) => {
    const [value, bar] = [el("span"), el("i", { class: "share", "aria-hidden": "true" })];
    return { value, bar, node: el("div", {}, el("dt", { text: name }), el("dd", {}, value, bar)) };
  });
  const facts = el("dl", {}, ...shares.map((share) => share.node));
  const machine = el("p", { class: "muted small machine" });
  const loading = el("progress", { max: 1, hidden: true, "aria-label": `${item.worker.name} loading` });
  const body = el("article", { class: "panel card" },
    el("div", { class: "row" }, place, title, state.node), where, advice, loading, bar, memory, times, facts, machine);
  return { node: el("li", {}, body), body, title, place, where, state, advice, segments, bar, memory, times, cells, shares, facts, machine, loading };
}

function update(card, { stage, worker, draft }) {
  const state = stage ? stateOf(stage, worker) : worker.state === "attached" ? worker.health.state : worse(worker.health, worker).state;
  setAttribute(card.body, "data-worker", worker.name);
  setAttribute(card.body, "data-state", state);
  setText(card.title, worker.name);
  setText(card.place, stage ? String(stage.stage) : "");
  setHidden(card.place, !stage);
  card.state.update(state, state === "loading" && stage ? `loading ${percent(stage.loaded)}` : state);

  const holds = [];
  if (stage) {
    holds.push(layers(stage));
    if (stage.embedding) holds.push("embedding");
    if (stage.head) holds.push("head");
  } else if (worker.state === "lost") {
    holds.push(`last heard of ${seconds(worker.last_seen_s)} ago`);
  }
  if (draft) holds.push(`drafts with ${draft.id}`);
  holds.push(worker.device === worker.device_name ? worker.device : `${worker.device}, ${worker.device_name}`);
  setText(card.where, holds.filter(Boolean).join(" · "));

  const health = stage ? worse(worker.health, stage.health) : worker.health;
  const told = [health.reason, health.advice].filter(Boolean).join(" — ");
  setText(card.advice, told);
  setHidden(card.advice, !told);

  setHidden(card.loading, !(stage && stage.loaded < 1));
  if (stage && stage.loaded < 1) card.loading.value = stage.loaded;

  memory(card, stage, worker, draft);
  setHidden(card.times, !stage);
  setHidden(card.facts, !stage);
  if (stage) times(card, stage);
  setText(card.machine, machine(worker));
}

function memory(card, stage, worker, draft) {
  const held = stage ? [stage.weight_bytes, stage.cache_bytes, stage.workspace_bytes] : [0, 0, 0];
  const drafting = draft?.memory_bytes ?? 0;
  const free = Math.max(worker.budget_bytes - held.reduce((sum, one) => sum + one, 0) - drafting, 0);
  held.forEach((one, place) => {
    card.segments[place].style.setProperty("width", worker.budget_bytes ? `${(100 * one) / worker.budget_bytes}%` : "0");
  });
  const texts = sizes([...held, drafting, free, worker.budget_bytes]);
  const parts = stage ? MEMORY.map((name, place) => `${name} ${texts[place]}`) : [];
  if (drafting) parts.push(`draft model ${texts[3]}`);
  parts.push(`free ${texts[4]} of ${texts[5]}`);
  setText(card.memory, parts.join(" · "));
  setAttribute(card.bar, "aria-label", `Memory: ${parts.join(", ")}`);
}

function times(card, stage) {
  const all = [
    [stage.decode_us_p50, stage.decode_us_p99, stage.predicted_decode_us],
    [stage.prefill_us_p50, null, null],
    [stage.queued_us_p50, stage.queued_us_p99, null],
  ];
  all.forEach((row, at) => row.forEach((value, column) => setText(card.cells[at][column], value === null ? "" : micros(value))));
  [stage.step_share, stage.busy].forEach((share, at) => {
    setText(card.shares[at].value, percent(share));
    card.shares[at].bar.style.setProperty("--share", `${Math.min(share, 1) * 100}%`);
  });
}

function machine(worker) {
  const { machine, process, card } = worker;
  const hot = card ?? machine;
  const told = [worker.host];
  if (card?.busy != null) told.push(`card ${percent(card.busy)}`);
  else if (machine.processors_busy !== null) told.push(`processors ${percent(machine.processors_busy)}`);
  if (hot.temperature_celsius !== null) told.push(`${Math.round(hot.temperature_celsius)} °C`);
  if (hot.power_watts !== null) told.push(`${Math.round(hot.power_watts)} W`);
  if (hot.throttle && hot.throttle !== "none") told.push(`held back by ${hot.throttle}`);
  if (worker.resident_bytes) told.push(`process ${bytes(worker.resident_bytes)}`);
  if (card?.memory_bytes) told.push(`card's memory free ${sizes([card.memory_free_bytes, card.memory_bytes]).join(" of ")}`);
  if (machine.memory_bytes) told.push(`memory free ${sizes([machine.memory_available_bytes, machine.memory_bytes]).join(" of ")}`);
  if (machine.swap_used_bytes) told.push(`swapped out ${bytes(machine.swap_used_bytes)}`);
  if (process.read_bytes_per_s) told.push(`reads ${bytesPerSecond(process.read_bytes_per_s)}`);
  return told.join(" · ");
}

export function shards(status) {
  const workers = new Map(status.workers.map((worker) => [worker.id, worker]));
  const draftOf = (worker) => (status.draft && status.draft.worker === worker.name ? status.draft : null);
  const held = status.stages.filter((stage) => workers.has(stage.worker)).map((stage) => {
    const worker = workers.get(stage.worker);
    return { stage, worker, draft: draftOf(worker) };
  });
  const holding = new Set(held.map((item) => item.worker.id));
  const spare = status.workers.filter((worker) => !holding.has(worker.id)).map((worker) => ({ stage: null, worker, draft: draftOf(worker) }));
  const key = (item) => item.worker.id;
  keyed(byId("shards"), held, key, make, update);
  keyed(byId("spare"), spare, key, make, update);
  setHidden(byId("no-shards"), held.length > 0 || spare.length > 0);
  setHidden(byId("spare-title"), spare.length === 0);
}
