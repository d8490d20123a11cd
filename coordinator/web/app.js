// The dashboard: takes what the coordinator streams, and shows it at most once a frame.

import "./chat.js";
import "./comparisons.js";
import { charts, sample } from "./charts.js";
import { byId, setHidden, setText } from "./dom.js";
import { millis } from "./format.js";
import { eventList, requests, takeEvent } from "./lists.js";
import { watch } from "./server.js";
import { shards } from "./shards.js";
import { changes, summary } from "./summary.js";
import { forgetSteps, takeSteps, timeline } from "./timeline.js";
import { topology } from "./topology.js";

let status = null;
let waiting = false;

// Takes one event of the stream.
export function take(name, value) {
  if (name === "status") {
    status = value;
    sample(status, performance.now());
  } else if (name === "steps") {
    takeSteps(value);
  } else if (name === "event") {
    takeEvent(value);
  }
  if (!waiting) {
    waiting = true;
    requestAnimationFrame(show);
  }
}

// Shows what is known.
export function show() {
  waiting = false;
  eventList();
  if (!status) return;
  const now = performance.now();
  summary(status);
  changes(status);
  charts(status, now);
  topology(status, now);
  shards(status);
  timeline(status);
  requests(status);
}

function connection(live, text) {
  setText(byId("live"), text);
  byId("live").dataset.tone = live ? "good" : "bad";
  document.body.classList.toggle("stale", !live);
}

watch({
  opened() {
    // The stream begins with the newest steps.
    forgetSteps();
    connection(true, "live");
    setHidden(byId("lost"), true);
  },
  take,
  lost(reason, wait) {
    connection(false, "not connected");
    setText(byId("lost-text"), `No connection: ${reason}. What is shown is what was last known; trying again in ${millis(wait)}.`);
    setHidden(byId("lost"), false);
    setText(byId("announcer"), `No connection: ${reason}`);
  },
});
