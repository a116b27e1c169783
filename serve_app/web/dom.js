// Elements and numbers. Text only ever becomes text nodes: nothing that a server sends is parsed as HTML.

/** An element with attributes (null or false: left out, true: empty) and children (strings become text nodes). */
export function el(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== null && value !== undefined && value !== false) {
      node.setAttribute(name, value === true ? "" : String(value));
    }
  }
  node.append(...children.filter((child) => child !== null));
  return node;
}

export const byId = (id) => document.getElementById(id);

export const count = (number) => Number(number).toLocaleString("en");

/** "1 token", "2 tokens". */
export const counted = (number, noun) => `${count(number)} ${noun}${number === 1 ? "" : "s"}`;

/** Milliseconds as people read them: "0.4 ms", "38 ms", "1.24 s". */
export function duration(milliseconds) {
  if (milliseconds >= 1000) return `${(milliseconds / 1000).toFixed(2)} s`;
  return `${milliseconds.toFixed(milliseconds < 10 ? 1 : 0)} ms`;
}

/** Bytes as people read them: "576 KiB". */
export function bytes(number) {
  const units = ["B", "KiB", "MiB", "GiB"];
  let unit = 0;
  while (number >= 1024 && unit < units.length - 1) {
    number /= 1024;
    unit += 1;
  }
  return `${number >= 100 || Number.isInteger(number) ? Math.round(number) : number.toFixed(1)} ${units[unit]}`;
}

/** Terms and their values as a definition list; entries without a value are left out. */
export function facts(entries, attributes = {}) {
  const present = entries.filter(([, value]) => value !== null && value !== undefined && value !== "");
  return el("dl", attributes, ...present.map(([term, value]) => el("div", {}, el("dt", {}, term), el("dd", {}, value))));
}
