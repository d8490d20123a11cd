// The header: what is served, how the cluster is, what it waits for.

import { byId, el, setAttribute, setHidden, setText } from "./dom.js";
import { bytes, count, percent, plural, seconds } from "./format.js";

// From best to worst, as the coordinator orders them, with a sign so that none is told by its colour alone.
const STATES = {
  ok: ["good", "●"],
  loading: ["busy", "◔"],
  draining: ["busy", "◌"],
  drained: ["busy", "◌"],
  slow: ["warn", "▲"],
  hot: ["warn", "▲"],
  full: ["warn", "■"],
  swapping: ["warn", "■"],
  waiting: ["warn", "■"],
  lost: ["bad", "✕"],
  hung: ["bad", "✕"],
  unreachable: ["bad", "✕"],
};

const ORDER = Object.keys(STATES);

export const worse = (left, right) => (ORDER.indexOf(right.state) > ORDER.indexOf(left.state) ? right : left);

export const tone = (state) => (STATES[state] ?? STATES.waiting)[0];

export const sign = (state) => (STATES[state] ?? STATES.waiting)[1];

// A state as a word with its sign; `update` sets it.
export function pill() {
  const [mark, word] = [el("span", { "aria-hidden": "true" }), el("span")];
  const node = el("span", { class: "pill" }, mark, word);
  const update = (state, text = state) => {
    setAttribute(node, "data-tone", tone(state));
    setText(mark, sign(state));
    setText(word, text);
  };
  return { node, update };
}

const health = pill();
byId("health").append(health.node);

const PHASES = {
  waiting: "waiting for workers",
  loading: "loading the model",
  connecting: "connecting the stages",
  serving: "serving",
  stopping: "shutting down",
};

// What the plan is pinned to, since when and by whom, or why it is no more.
function pin({ pinned, pinned_s: age, pinned_by: by, pin_ended: ended }) {
  if (pinned.length === 0) return ended ? `Pinned no more: ${ended}` : "";
  return `Pinned to ${pinned.join(", ")} for ${seconds(age)}${by ? ` by ${by}` : ""}`;
}

export function summary(status) {
  const { model, phase } = status;
  setText(byId("model"), model.id);
  const facts = [plural(model.layers, "layer"), bytes(model.weight_bytes)];
  if (status.context) facts.push(`context ${count(status.context)}`);
  setText(byId("model-facts"), facts.join(" · "));
  const state = phase === "serving" ? status.health.state : worse(status.health, { state: phase === "loading" ? "loading" : "waiting" }).state;
  health.update(state, phase === "serving" && !status.recovering ? state : status.recovering ? "recovering" : PHASES[phase]);
  setText(document.querySelector("title"), `${phase === "serving" ? state : PHASES[phase]} · ${model.id} · Brigade`);

  const told = [status.health.reason ?? (phase === "serving" ? null : status.reason), status.health.advice].filter(Boolean);
  setText(byId("reason"), told.join(" — "));
  setHidden(byId("reason"), told.length === 0);
  setText(byId("note"), status.note ?? "");
  setHidden(byId("note"), !status.note);
  setText(byId("pin"), pin(status));
  setHidden(byId("pin"), !pin(status));

  const all = status.stages.reduce((sum, stage) => sum + stage.weight_bytes, 0);
  const read = status.stages.reduce((sum, stage) => sum + stage.weight_bytes * stage.loaded, 0);
  const loading = all > 0 && read < all;
  setHidden(byId("loading"), !loading);
  if (loading) {
    setText(byId("loading-text"), `Loading ${percent(read / all)}: ${bytes(read)} of ${bytes(all)}`);
    byId("loading-bar").value = read / all;
  }
}

const said = new Map();

// What to say aloud of what has changed: the states of workers and the cluster, and nothing at first.
export function changes(status) {
  const states = new Map([["The cluster", status.phase === "serving" ? status.health.state : PHASES[status.phase]]]);
  for (const worker of status.workers) {
    const state = worker.state === "attached" ? worker.health.state : worse(worker.health, worker).state;
    states.set(worker.name, state);
  }
  const first = said.size === 0;
  const news = [];
  for (const [name, state] of states) {
    if (said.get(name) !== state && !first) news.push(`${name}: ${state}`);
    said.set(name, state);
  }
  if (news.length > 0) setText(byId("announcer"), news.join("; "));
}
