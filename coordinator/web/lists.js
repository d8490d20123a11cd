// Requests that run or wait, and what has happened.

import { byId, el, keyed, setAttribute, setHidden, setText } from "./dom.js";
import { clock, count, plural, seconds } from "./format.js";

const MOST_EVENTS = 200;

export function requests(status) {
  const { requests, active } = status;
  setText(byId("requests-facts"), `${count(requests.running)} running · ${count(requests.waiting)} waiting`);
  const totals = [`${count(requests.finished)} finished`, `${count(requests.cancelled)} cancelled`, `${count(requests.failed)} failed`];
  if (requests.recovered) totals.push(`${count(requests.recovered)} gone on after a loss`);
  totals.push(`${plural(requests.generated_tokens, "token")} generated`);
  setText(byId("requests-totals"), totals.join(" · "));
  keyed(byId("requests").tBodies[0], active, (request) => request.id, () => {
    const cells = Array.from({ length: 5 }, (_, place) => el(place === 0 ? "th" : "td", { class: place > 1 ? "number" : null, scope: place === 0 ? "row" : null }));
    return { node: el("tr", {}, ...cells), cells };
  }, ({ cells }, request) => {
    const texts = [
      `#${request.id}`,
      request.state,
      request.state === "prefill" ? `${count(request.prompt_tokens_done)} / ${count(request.prompt_tokens)}` : count(request.prompt_tokens),
      `${count(request.generated_tokens)} / ${count(request.max_tokens)}`,
      seconds(request.age_s),
    ];
    texts.forEach((text, place) => setText(cells[place], text));
  });
  setHidden(byId("requests"), active.length === 0);
  setHidden(byId("no-requests"), active.length > 0);
}

let events = new Map();

export function takeEvent(event) {
  events.set(event.id, event);
  if (events.size > MOST_EVENTS) {
    const kept = [...events.keys()].sort((a, b) => b - a).slice(0, MOST_EVENTS);
    events = new Map(kept.map((id) => [id, events.get(id)]));
  }
}

const SIGNS = { info: "●", warning: "▲", error: "✕" };
const TONES = { info: "busy", warning: "warn", error: "bad" };

export function eventList() {
  const newest = [...events.values()].sort((a, b) => b.id - a.id);
  keyed(byId("events"), newest, (event) => event.id, (event) => {
    const sign = el("span", { class: "sign", "aria-hidden": "true", text: SIGNS[event.severity] });
    const word = el("span", { class: "unseen", text: event.severity });
    const time = el("time", { datetime: new Date(event.at_ms).toISOString(), text: clock(event.at_ms) });
    const node = el("li", {}, sign, word, time, el("span", { text: event.text }));
    setAttribute(node, "data-tone", TONES[event.severity]);
    return { node };
  }, () => {});
  setHidden(byId("no-events"), newest.length > 0);
}
