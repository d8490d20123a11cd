// A conversation with the model, in this page alone.

import { byId, el, setHidden, setText } from "./dom.js";
import { digits, millis, plural } from "./format.js";
import { ask, events } from "./server.js";

// After so long without a token the answer is said to wait, so that nobody thinks the page has stopped.
const WAIT_MS = 1500;
const REFRESH_MS = 250;

const [log, form, input] = [byId("chat-log"), byId("chat-form"), byId("chat-input")];
const [send, stop] = [byId("chat-send"), byId("chat-stop")];

let messages = [];
let running = null;

function add(role, text) {
  const [body, figures] = [el("p", { class: "said", text }), el("p", { class: "figures-line muted" })];
  const node = el("div", { class: `message ${role}` }, el("h3", { class: "unseen", text: role === "user" ? "You" : "Model" }), body, figures);
  setHidden(byId("chat-empty"), true);
  log.append(node);
  log.scrollTop = log.scrollHeight;
  return { node, body, figures };
}

// Keeps the end in view for whoever is at the end.
function keepEnd(change) {
  const atEnd = log.scrollHeight - log.scrollTop - log.clientHeight < 24;
  change();
  if (atEnd) log.scrollTop = log.scrollHeight;
}

class Pace {
  constructor() {
    this.asked = performance.now();
    this.first = null;
    this.last = null;
    this.tokens = 0;
  }

  came(tokens) {
    this.last = performance.now();
    this.first ??= this.last;
    this.tokens += tokens;
  }

  text(ended) {
    const now = performance.now();
    if (this.first === null) return ended ? "" : `waiting for the first token, ${millis(now - this.asked)}`;
    const parts = [`first token after ${millis(this.first - this.asked)}`];
    if (this.tokens > 1 && this.last > this.first) parts.push(`${digits(((this.tokens - 1) * 1000) / (this.last - this.first))} tokens/s`);
    parts.push(plural(this.tokens, "token"));
    if (!ended && now - this.last > WAIT_MS) parts.push(`waiting for ${millis(now - this.last)}`);
    return parts.join(" · ");
  }
}

async function answer() {
  const attempt = new AbortController();
  running = attempt;
  // A new chat may begin before this answer has ended.
  const conversation = messages;
  setHidden(stop, false);
  send.disabled = true;
  log.setAttribute("aria-busy", "true");
  const shown = add("assistant", "");
  const pace = new Pace();
  const refresh = setInterval(() => keepEnd(() => setText(shown.figures, pace.text(false))), REFRESH_MS);
  let text = "";
  let end = null;
  try {
    const response = await ask("/v1/chat/completions", {
      method: "POST",
      headers: { "content-type": "application/json" },
      body: JSON.stringify({ messages: conversation, stream: true, return_token_ids: true }),
      signal: attempt.signal,
    });
    for await (const { data } of events(response)) {
      if (data === "[DONE]") {
        end ??= "";
        break;
      }
      const chunk = JSON.parse(data);
      if (chunk.error) throw new Error(chunk.error.message);
      const choice = chunk.choices[0];
      if (choice?.token_ids?.length) pace.came(choice.token_ids.length);
      if (choice?.delta.content) {
        text += choice.delta.content;
        keepEnd(() => shown.body.append(choice.delta.content));
      }
      if (choice?.finish_reason === "length") end = "the context is full";
    }
    end ??= "the answer broke off";
  } catch (error) {
    end = attempt.signal.aborted ? "stopped" : error.message;
    if (!attempt.signal.aborted) shown.node.append(el("p", { class: "error", role: "alert", text: error.message }));
  }
  clearInterval(refresh);
  keepEnd(() => setText(shown.figures, [pace.text(true), attempt.signal.aborted || end === "" || end === "the context is full" || end === "the answer broke off" ? end : ""].filter(Boolean).join(" · ")));
  // A model is never told that it had said nothing.
  if (text) conversation.push({ role: "assistant", content: text });
  else conversation.pop();
  running = null;
  log.setAttribute("aria-busy", "false");
  setHidden(stop, true);
  send.disabled = false;
}

form.addEventListener("submit", (event) => {
  event.preventDefault();
  const text = input.value.trim();
  if (!text || running) return;
  input.value = "";
  messages.push({ role: "user", content: text });
  add("user", text);
  answer();
});

input.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    form.requestSubmit();
  }
});

stop.addEventListener("click", () => {
  running?.abort();
  input.focus();
});

byId("chat-new").addEventListener("click", () => {
  running?.abort();
  messages = [];
  log.querySelectorAll(".message").forEach((node) => node.remove());
  setHidden(byId("chat-empty"), false);
  input.focus();
});
