// The coordinator and the stages from left to right, with the links between them; in several rows where they do not fit
// into one, there and back.

import { byId, setAttribute, setText, svg, watchWidth } from "./dom.js";
import { bytesPerSecond, layers, micros, percent, plural, shorten } from "./format.js";
import { sign, tone, worse } from "./summary.js";

const NODE = { width: 128, height: 56 };
const GAP = { least: 60, most: 150 };
const MARGIN = 16;
const ROW_GAP = 44;
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

// What is drawn, until the stages or the room for them change: so that a dot goes on where it was.
let picture = null;

function draw(status, now) {
  const available = Math.max(width(), 240);
  const plan = [available, ...status.stages.map((stage) => [stage.worker, stage.name, layers(stage)])].join();
  if (picture?.plan !== plan) {
    picture = build(status.stages, available, plan);
    holder.replaceChildren(picture.root);
  }
  const workers = new Map(status.workers.map((worker) => [worker.id, worker]));
  const states = status.stages.map((stage) => stateOf(stage, workers.get(stage.worker)));
  picture.coordinator.update("ok", `epoch ${status.epoch}`, plural(status.requests.running, "request"));
  status.stages.forEach((stage, place) => {
    picture.stages[place].update(states[place], layers(stage), workers.get(stage.worker)?.device ?? "");
  });
  hops(status).forEach((way, place) => picture.links[place]?.update(way));
  setAttribute(picture.root, "class", now - flows.at < FLOW_MS ? "moving" : "");
  const words = status.stages.map((stage, place) => `${stage.name} with ${layers(stage)}, ${states[place]}`);
  setAttribute(picture.root, "aria-label", words.length > 0 ? `From the coordinator through ${words.join("; ")}; and back` : "The coordinator, and no stages yet");
  const facts = [words.length > 0 ? plural(words.length, "stage") : null, `${status.wire} on the wire`];
  if (status.predicted.bottleneck) facts.push(`limited by ${status.predicted.bottleneck}`);
  setText(byId("pipeline-facts"), facts.filter(Boolean).join(" · "));
}

function build(stages, available, plan) {
  const { at, rows } = place(stages.length + 1, available);
  const height = 8 + rows * NODE.height + (rows - 1) * ROW_GAP + (stages.length > 0 ? 34 : 8);
  const links = stages.map((_, index) => link(at(index), at(index + 1)));
  if (stages.length > 0) links.push(home(at(0), at(stages.length), height));
  const coordinator = node(at(0), "coordinator", true);
  const nodes = stages.map((stage, index) => node(at(index + 1), stage.name, false));
  const root = svg("svg", { width: available, height, viewBox: `0 0 ${available} ${height}`, role: "img" },
    ...[...links, coordinator, ...nodes].map((part) => part.node));
  return { root, plan, links, coordinator, stages: nodes };
}

export function stateOf(stage, worker) {
  let health = stage.health;
  if (worker) health = worse(health, worker.health);
  if (worker && worker.state !== "attached") health = worse(health, worker);
  return health.state;
}

function node({ x, y }, name, plain) {
  const text = (dx, dy, kind, end = false) => svg("text", { x: x + dx, y: y + dy, class: kind, "text-anchor": end ? "end" : null });
  const [title, first, second] = [svg("title"), text(15, 35, "fact"), text(15, 48, "fact")];
  const [heading, mark] = [text(15, 20, "name"), text(NODE.width - 10, 20, "sign", true)];
  setText(heading, shorten(name, 14));
  const group = svg("g", { class: "node" }, title,
    svg("rect", { x, y, width: NODE.width, height: NODE.height, rx: 6, class: plain ? "box plain" : "box" }),
    plain ? null : svg("rect", { x: x + 5, y: y + 9, width: 3, height: NODE.height - 18, rx: 1.5, class: "edge" }),
    heading, first, second, plain ? null : mark);
  const update = (state, upper, lower) => {
    setAttribute(group, "data-tone", tone(state));
    setText(title, plain ? name : `${name}: ${state}`);
    setText(mark, sign(state));
    setText(first, upper);
    setText(second, shorten(lower, 18));
  };
  return { node: group, update };
}

function arrow(x, y, direction) {
  const [dx, dy] = { right: [-6, 0], left: [6, 0], down: [0, -6] }[direction];
  const side = dx === 0 ? [4, 0] : [0, 4];
  return svg("path", { class: "head", d: `M${x} ${y}L${x + dx + side[0]} ${y + dy + side[1]}L${x + dx - side[0]} ${y + dy - side[1]}Z` });
}

function link(from, to) {
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
  return wire(points, head, labels, null);
}

// The way of token ids, under everything and back to the coordinator.
function home(first, last, height) {
  const [x, y] = [last.x + NODE.width / 2, last.y + NODE.height];
  const bottom = height - 18;
  const points = `M${x} ${y}V${bottom - 6}Q${x} ${bottom} ${x - 6} ${bottom}H11Q5 ${bottom} 5 ${bottom - 6}V${first.y + NODE.height / 2}H${first.x}`;
  const head = arrow(first.x, first.y + NODE.height / 2, "right");
  // Where there is no room above so short a line, the words stand beside it.
  const words = x < 240 ? [x + 9, bottom - 3, x + 9, bottom + 11, "start"] : [(x + 5) / 2, bottom - 5, (x + 5) / 2, bottom + 14, "middle"];
  return wire(points, head, words, "token ids");
}

function wire(points, head, [x1, y1, x2, y2, anchor], name) {
  const [title, upper, lower] = [svg("title"), svg("text", { x: x1, y: y1, "text-anchor": anchor }), svg("text", { x: x2, y: y2, "text-anchor": anchor })];
  const group = svg("g", {}, title, svg("path", { d: points, class: "wire" }), svg("path", { d: points, class: "flow" }), head, upper, lower);
  setAttribute(upper, "class", "label");
  const update = ({ link, broken, rtt, rate, loss }) => {
    setAttribute(group, "class", broken ? "link broken" : "link");
    setText(title, link ? `${link.peer_name || link.peer} at ${link.address}${link.choice ? `: ${link.choice}` : ""}; ${link.lost_packets} packets lost so far` : "");
    const losing = !broken && loss > LOSS;
    setText(upper, broken ? "✕ broken" : [name, rtt ? micros(rtt) : null].filter(Boolean).join(" · "));
    setText(lower, broken ? "" : losing ? `${percent(loss)} lost` : rate === null ? "" : bytesPerSecond(rate));
    setAttribute(lower, "class", losing ? "label loss" : "label");
  };
  return { node: group, update };
}
