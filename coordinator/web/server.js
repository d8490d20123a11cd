// Speaking with the coordinator: with a key where it wants one, and again and again where it is gone.

import { byId, setText } from "./dom.js";

// Kept for this tab alone, and no longer than it.
const KEY = "brigade-api-key";

// A state comes at least every 2 s; this many without one and the connection is dead, whatever the system thinks.
const SILENCE_MS = 7000;
const FIRST_WAIT_MS = 500;
const MOST_WAIT_MS = 8000;

// A longer line is not one of the coordinator's.
const MOST_LINE_CHARS = 8 << 20;

let asking = null;

function askForKey(reason) {
  asking ??= new Promise((resolve) => {
    const [dialog, form, input] = [byId("key-dialog"), byId("key-form"), byId("key-input")];
    setText(byId("key-reason"), reason);
    const keepOpen = (event) => event.preventDefault();
    dialog.addEventListener("cancel", keepOpen);
    form.addEventListener("submit", () => {
      sessionStorage.setItem(KEY, input.value);
      input.value = "";
      dialog.removeEventListener("cancel", keepOpen);
      asking = null;
      resolve();
    }, { once: true });
    dialog.showModal();
  });
  return asking;
}

// The answer to a request, once it is one of success.
export async function ask(path, options = {}) {
  for (;;) {
    const key = sessionStorage.getItem(KEY);
    const headers = { ...options.headers, ...(key && { authorization: `Bearer ${key}` }) };
    const response = await fetch(path, { cache: "no-store", ...options, headers });
    if (response.ok) return response;
    const said = await response.json().catch(() => ({}));
    const message = said.error?.message ?? `the coordinator answered ${response.status}`;
    if (response.status !== 401) throw new Error(message);
    // Another request may have asked meanwhile.
    if (sessionStorage.getItem(KEY) !== key) continue;
    await askForKey(key ? "That key is not one of this coordinator's." : "This coordinator wants a key. It stays in this tab.");
  }
}

// The server-sent events of an answer, as `{ name, data }`.
export async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  let name = "message";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      const lines = (rest + value).split("\n");
      rest = lines.pop();
      if (rest.length > MOST_LINE_CHARS) throw new Error("the coordinator sent a line without an end");
      for (const line of lines) {
        if (line === "") name = "message";
        else if (line.startsWith("event:")) name = line.slice(6).trim();
        else if (line.startsWith("data:")) yield { name, data: line.slice(5).trim() };
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

// Follows the cluster for ever: `opened()`, `take(name, value)` for each event, and `lost(reason, wait_ms)`.
export async function watch({ opened, take, lost }) {
  let wait = FIRST_WAIT_MS;
  for (;;) {
    const attempt = new AbortController();
    let silence = 0;
    const heard = () => {
      clearTimeout(silence);
      silence = setTimeout(() => attempt.abort(new Error("nothing has come for some seconds")), SILENCE_MS);
    };
    let reason = "the coordinator ended the connection";
    try {
      const response = await ask("/api/stream", { signal: attempt.signal });
      opened();
      heard();
      for await (const { name, data } of events(response)) {
        heard();
        wait = FIRST_WAIT_MS;
        take(name, JSON.parse(data));
      }
    } catch (error) {
      // What browsers say of a connection that failed says nothing to people.
      reason = error instanceof TypeError ? "the coordinator does not answer" : error.message;
    }
    clearTimeout(silence);
    lost(reason, wait);
    await new Promise((resolve) => {
      const retry = byId("retry");
      const go = () => {
        clearTimeout(timer);
        retry.removeEventListener("click", go);
        resolve();
      };
      const timer = setTimeout(go, wait);
      retry.addEventListener("click", go);
    });
    wait = Math.min(wait * 2, MOST_WAIT_MS);
  }
}
