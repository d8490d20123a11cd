// Earlier comparisons of the cluster with one box: asked for now and then, since they come rarely.

import { byId, el, keyed, setHidden, setText } from "./dom.js";
import { digits, percent } from "./format.js";
import { ask } from "./server.js";

const EVERY_MS = 30000;
const SHOWN = 8;

const NONE = "–";

const value = (number) => (number === null ? NONE : digits(number));

const name = (kind) => ({ "one-box": "one box", "one-box-with-offload": "one box, offload" })[kind] ?? kind;

// A side's figures in a cell: one stream, and the most that were measured.
function figures({ kind, name: whole, one_stream: one, most_streams: most }) {
  const many = most ? ` · ${value(most.tokens_per_s)} with ${most.streams} streams` : "";
  return el("li", { title: whole, text: `${kind === "other" ? whole : name(kind)}: ${value(one)}${many}` });
}

function row(entry) {
  const when = new Date(entry.began_unix_s * 1000);
  const time = el("time", { datetime: when.toISOString(), text: when.toLocaleString("en", { dateStyle: "medium", timeStyle: "short" }) });
  const off = entry.prediction_error === null ? NONE : percent(entry.prediction_error);
  return el(
    "tr",
    {},
    el("th", { scope: "row" }, time),
    el("td", { class: "wrap", text: entry.model }),
    el("td", { class: "wrap sides" }, el("ul", {}, ...entry.sides.map(figures))),
    el("td", { class: "number", text: off }),
    el("td", { class: "wrap", text: entry.disturbed ? `${entry.verdict} Other requests ran meanwhile.` : entry.verdict }),
  );
}

async function show() {
  try {
    const entries = await (await ask(`/api/comparisons?limit=${SHOWN}`)).json();
    keyed(byId("comparisons").tBodies[0], entries, (entry) => entry.id, (entry) => ({ node: row(entry) }), () => {});
    setHidden(byId("comparisons"), entries.length === 0);
    setHidden(byId("no-comparisons"), entries.length > 0);
    setText(byId("comparisons-error"), "");
  } catch (error) {
    // That nobody answers is said at the top of the page.
    setText(byId("comparisons-error"), error instanceof TypeError ? "" : error.message);
  }
  setHidden(byId("comparisons-error"), byId("comparisons-error").textContent === "");
  setTimeout(show, EVERY_MS);
}

show();
