// Figures for people.

const NONE = "–";

function steps(value, units, base) {
  let at = 0;
  while (value >= base * 0.9995 && at < units.length - 1) {
    value /= base;
    at += 1;
  }
  return `${digits(value)} ${units[at]}`;
}

// Three significant digits, or all that stand before the point.
export function digits(value) {
  if (!Number.isFinite(value)) return NONE;
  if (value === 0) return "0";
  if (value >= 99.95) return Math.round(value).toLocaleString("en");
  return value.toFixed(value >= 9.995 ? 1 : 2);
}

export const bytes = (value) => steps(value, ["B", "KiB", "MiB", "GiB", "TiB"], 1024);

// Several sizes in the unit of the largest, which the last of them says.
export function sizes(values) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  const at = Math.min(Math.floor(Math.log2(Math.max(...values, 1)) / 10), units.length - 1);
  return values.map((value, place) => digits(value / 1024 ** at) + (place === values.length - 1 ? ` ${units[at]}` : ""));
}

export const bytesPerSecond = (value) => (value < 1 ? "0 B/s" : `${steps(value, ["B", "kB", "MB", "GB"], 1000)}/s`);

export function micros(value) {
  if (!value) return NONE;
  return value < 1000 ? `${Math.round(value)} µs` : millis(value / 1000);
}

export function millis(value) {
  if (!value) return NONE;
  return value < 1000 ? `${digits(value)} ms` : `${digits(value / 1000)} s`;
}

export const percent = (share) => (share > 0 && share < 0.0995 ? `${(share * 100).toFixed(1)}%` : `${Math.round(share * 100)}%`);

export const count = (value) => Math.round(value).toLocaleString("en");

export function seconds(value) {
  if (value < 10) return `${value.toFixed(1)} s`;
  if (value < 60) return `${Math.round(value)} s`;
  if (value < 7200) return `${Math.round(value / 60)} min`;
  return `${Math.round(value / 3600)} h`;
}

export function clock(milliseconds) {
  const time = new Date(milliseconds);
  return [time.getHours(), time.getMinutes(), time.getSeconds()].map((part) => String(part).padStart(2, "0")).join(":");
}

// The layers of a shard, of which the last is one past its end.
export const layers = ({ layer_start: first, layer_end: end }) =>
  end - first === 1 ? `layer ${first}` : `layers ${first}–${end - 1}`;

export const plural = (value, one, many = `${one}s`) => `${count(value)} ${value === 1 ? one : many}`;

export const shorten = (text, most) => (text.length > most ? `${text.slice(0, most - 1)}…` : text);
