// Elements, made once and changed in place. Text is always set as text: nothing here makes markup of it.

const SVG = "http://www.w3.org/2000/svg";

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "text") node.textContent = value;
    else if (value !== null && value !== undefined && value !== false) node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.filter((child) => child !== null));
  return node;
}

export function el(name, attributes = {}, ...children) {
  return fill(document.createElement(name), attributes, children);
}

export function svg(name, attributes = {}, ...children) {
  return fill(document.createElementNS(SVG, name), attributes, children);
}

export const byId = (id) => document.getElementById(id);

// Leaves the document alone where nothing changes, so that a reader is not told again and nothing is laid out anew.
export function setText(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

export function setAttribute(node, name, value) {
  if (value === null) node.removeAttribute(name);
  else if (node.getAttribute(name) !== String(value)) node.setAttribute(name, value);
}

export function setHidden(node, hidden) {
  if (node.hidden !== hidden) node.hidden = hidden;
}

const KNOWN = new WeakMap();

// Shows one child of `parent` for each item, in their order. What was made for an item is kept as long as its key is
// there. `make` gives an object with a `node`; `update` brings it up to date.
export function keyed(parent, items, keyOf, make, update) {
  const known = KNOWN.get(parent) ?? new Map();
  KNOWN.set(parent, known);
  const keys = new Set(items.map(keyOf));
  for (const [key, part] of known) {
    if (!keys.has(key)) {
      part.node.remove();
      known.delete(key);
    }
  }
  let before = parent.firstElementChild;
  for (const item of items) {
    const key = keyOf(item);
    let part = known.get(key);
    if (!part) {
      part = make(item);
      known.set(key, part);
    }
    update(part, item);
    if (part.node === before) before = before.nextElementSibling;
    else parent.insertBefore(part.node, before);
  }
}

// Calls `draw` with the width of `node` whenever that changes; gives a function that says the width.
export function watchWidth(node, draw) {
  let width = node.clientWidth;
  new ResizeObserver(() => {
    if (node.clientWidth === width) return;
    width = node.clientWidth;
    draw();
  }).observe(node);
  return () => width;
}
