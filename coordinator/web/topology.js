// The coordinator and the stages from left to right, with the links between them; in several rows where they do not fit
// into one, there and back.

import { byId, setAttribute, setText, svg, watchWidth } from "./dom.js";
import { bytesPerSecond, micros, percent, plural, shorten } from "./format.js";
import { sign, tone, worse } from "./summary.js";

const NODE = { width: 128, height: 56 };
const GAP = { least: 72, most: 150 };
const MARGIN = 16;
const ROW_GAP = 54;
// A share of lost packets below this is noise.
const LOSS = 0.0005;
// Steps that came home within this count as flowing.
const FLOW_MS = 1500;

const holder = byId("topology");
let drawn = null;
let flows = { count: -1, at: -Infinity };

const width = watchWidth(holder, () => drawn && draw(drawn, performance.now()));

export function topology(status, now) {
  if (status.steps.count !== flows.count) {
    if (flows.count >= 0) flows.at = now;
    flows.count = status.steps.count;
  }
  drawn = status;
  draw(status, now);
}

const gone = (worker) => !worker || worker.state === "lost" || worker.health.state === "unreachable";

// What is known of the way from one stage to the next, and of those to and from the coordinator.
function hops(status) {
  const workers = new Map(status.workers.map((worker) => [worker.id, worker]));
  const stages = status.stages.map((stage) => ({ stage, worker: workers.get(stage.worker) }));
  const known = (worker, peer) => worker?.links.find((link) => link.peer === peer);
  return [...stages, null].map((to, place) => {
    const from = place > 0 ? stages[place - 1] : null;
    const link = from ? known(from.worker, to ? to.stage.worker : "coordinator") : known(to?.worker, "coordinator");
    const broken = (from !== null && gone(from.worker)) || (to !== null && gone(to.worker));
    const rtt = link?.rtt_us || (to && from ? from.stage.next_rtt_us : null);
    const rate = link ? (from ? link.sent_bytes_per_s : link.received_bytes_per_s) : null;
    return { link, broken, rtt, rate, loss: link?.loss ?? 0 };
  });
}

function place(nodes, available) {
  const room = Math.max(available - 2 * MARGIN, NODE.width);
  const columns = Math.max(1, Math.min(nodes, Math.floor((room + GAP.least) / (NODE.width + GAP.least))));
  const gap = columns > 1 ? Math.min(GAP.most, (room - columns * NODE.width) / (columns - 1)) : 0;
  const at = (index) => {
    const row = Math.floor(index / columns);
    const column = row % 2 === 0 ? index % columns : columns - 1 - (index % columns);
    return { x: MARGIN + column * (NODE.width + gap), y: 8 + row * (NODE.height + ROW_GAP), row };
  };
  return { at, rows: Math.ceil(nodes / columns) };
}

function draw(status, now) {
  const stages = status.stages;
  const available = Math.max(width(), 240);
  const { at, rows } = place(stages.length + 1, available);
  const ways = hops(status);
  const moving = now - flows.at < FLOW_MS;
  const height = 8 + rows * NODE.height + (rows - 1) * ROW_GAP + (stages.length > 0 ? 34 : 8);
  const parts = [];
  for (let index = 1; index <= stages.length; index += 1) parts.push(...link(at(index - 1), at(index), ways[index - 1], moving));
  if (stages.length > 0) parts.push(...home(at(0), at(stages.length), height, ways[stages.length], moving));
  parts.push(node(at(0), "coordinator", `epoch ${status.epoch}`, plural(status.requests.running, "request"), "ok", true));
  const workers = new Map(status.workers.map((worker) => [worker.id, worker]));
  stages.forEach((stage, index) => {
    const worker = workers.get(stage.worker);
    const state = stateOf(stage, worker);
    parts.push(node(at(index + 1), stage.name, `layers ${stage.layer_start}–${stage.layer_end - 1}`, worker?.device ?? "", state, false));
  });
  const words = stages.map((stage) => `${stage.name} with layers ${stage.layer_start} to ${stage.layer_end - 1}, ${stateOf(stage, workers.get(stage.worker))}`);
  const label = stages.length > 0 ? `From the coordinator through ${words.join("; ")}; and back` : "The coordinator, and no stages yet";
  holder.replaceChildren(svg("svg", { width: available, height, viewBox: `0 0 ${available} ${height}`, role: "img", "aria-label": label, class: moving ? "moving" : "" }, ...parts));
  const facts = [status.stages.length > 0 ? plural(status.stages.length, "stage") : null, `${status.wire} on the wire`];
  if (status.predicted.bottleneck) facts.push(`limited by ${status.predicted.bottleneck}`);
  setText(byId("pipeline-facts"), facts.filter(Boolean).join(" · "));
}

export function stateOf(stage, worker) {
  let health = stage.health;
  if (worker) health = worse(health, worker.health);
  if (worker && worker.state !== "attached") health = worse(health, worker);
  return health.state;
}

function node({ x, y }, name, first, second, state, plain) {
  const text = (dx, dy, content, kind) => svg("text", { x: x + dx, y: y + dy, class: kind, text: content });
  return svg("g", { class: "node", "data-tone": tone(state) },
    svg("title", { text: plain ? name : `${name}: ${state}` }),
    svg("rect", { x, y, width: NODE.width, height: NODE.height, rx: 6, class: plain ? "box plain" : "box" }),
    plain ? null : svg("rect", { x: x + 5, y: y + 9, width: 3, height: NODE.height - 18, rx: 1.5, class: "edge" }),
    text(15, 20, shorten(name, 14), "name"),
    plain ? null : svg("text", { x: x + NODE.width - 10, y: y + 20, class: "sign", "text-anchor": "end", text: sign(state) }),
    text(15, 35, first, "fact"),
    text(15, 48, shorten(second, 18), "fact"));
}

function arrow(x, y, direction) {
  const [dx, dy] = { right: [-6, 0], left: [6, 0], down: [0, -6] }[direction];
  const side = dx === 0 ? [4, 0] : [0, 4];
  return svg("path", { class: "head", d: `M${x} ${y}L${x + dx + side[0]} ${y + dy + side[1]}L${x + dx - side[0]} ${y + dy - side[1]}Z` });
}

function link(from, to, way, moving) {
  const across = from.row === to.row;
  const middle = NODE.height / 2;
  let points, head, labels;
  if (across) {
    const right = to.x > from.x;
    const [x1, x2, y] = [right ? from.x + NODE.width : from.x, right ? to.x : to.x + NODE.width, from.y + middle];
    points = `M${x1} ${y}H${x2}`;
    head = arrow(x2, y, right ? "right" : "left");
    labels = [(x1 + x2) / 2, y - 7, (x1 + x2) / 2, y + 16, "middle"];
  } else {
    const [x, y1, y2] = [from.x + NODE.width / 2, from.y + NODE.height, to.y];
    points = `M${x} ${y1}V${y2}`;
    head = arrow(x, y2, "down");
    labels = [x + 9, (y1 + y2) / 2 - 3, x + 9, (y1 + y2) / 2 + 11, "start"];
  }
  return way_(points, head, way, moving, labels);
}

// The way of token ids, under everything and back to the coordinator.
function home(first, last, height, way, moving) {
  const [x, y] = [last.x + NODE.width / 2, last.y + NODE.height];
  const bottom = height - 18;
  const points = `M${x} ${y}V${bottom - 6}Q${x} ${bottom} ${x - 6} ${bottom}H11Q5 ${bottom} 5 ${bottom - 6}V${first.y + NODE.height / 2}H${first.x}`;
  const head = arrow(first.x, first.y + NODE.height / 2, "right");
  const middle = Math.max((x + 5) / 2, 60);
  return way_(points, head, way, moving, [middle, bottom - 5, middle, bottom + 14, "middle"], "token ids");
}

function way_(points, head, { link, broken, rtt, rate, loss }, moving, [x1, y1, x2, y2, anchor], name = null) {
  const kind = broken ? "link broken" : "link";
  const lines = broken ? ["✕ broken", null] : [[name, rtt ? micros(rtt) : null].filter(Boolean).join(" · "), rate === null ? null : bytesPerSecond(rate)];
  if (!broken && loss > LOSS) lines[1] = `${percent(loss)} lost`;
  const about = link ? `${link.peer_name || link.peer} at ${link.address}${link.choice ? `: ${link.choice}` : ""}; ${link.lost_packets} packets lost so far` : null;
  return [svg("g", { class: kind },
    about ? svg("title", { text: about }) : null,
    svg("path", { d: points, class: "wire" }),
    moving && !broken ? svg("path", { d: points, class: "flow" }) : null,
    head,
    lines[0] ? svg("text", { x: x1, y: y1, "text-anchor": anchor, class: "label", text: lines[0] }) : null,
    lines[1] ? svg("text", { x: x2, y: y2, "text-anchor": anchor, class: loss > LOSS ? "label loss" : "label", text: lines[1] }) : null)];
}
