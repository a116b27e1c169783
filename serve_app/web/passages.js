// The passages behind one answer, each with its text, and its part in the answer if that was measured.

import { el } from "./dom.js";

const TIERS = {
  memory: "its gradient was in memory",
  disk: "its gradient was in the cache on disk",
  store: "its gradient came from the bank's store",
  computed: "its gradient was computed earlier, and kept in memory",
  online: "its gradient was computed for this request",
};
const MEASURES = {
  leave_one_out: "Bars: how much more probable the answer is with the passage's gradient than without it (natural log).",
  norms: "Bars: the length of each passage's step.",
};

/** A list that is updated in place, so that what is open stays open. */
export class Passages {
  constructor(contributions) {
    this.measure = MEASURES[contributions] ? contributions : null;
    this.items = new Map();
    this.list = el("ol", { class: "passages" });
    this.note = el("p", { class: "faint" });
    this.node = el("div", {}, this.list, this.note);
  }

  /** Says something instead of passages. */
  explain(text) {
    this.note.textContent = text;
  }

  /** Shows these passages, in this order. */
  show(infos) {
    const largest = Math.max(...infos.map((info) => Math.abs(info.contribution ?? 0)), 0);
    const known = this.items;
    this.items = new Map(infos.map((info) => [info.id, known.get(info.id) ?? new Item(info)]));
    for (const info of infos) this.items.get(info.id).update(info, this.measure, largest);
    const nodes = [...this.items.values()].map((item) => item.node);
    if (nodes.length !== this.list.children.length || nodes.some((node, at) => node !== this.list.children[at])) {
      this.list.replaceChildren(...nodes);
    }
    const measured = this.measure && infos.some((info) => typeof info.contribution === "number");
    this.explain(measured ? MEASURES[this.measure] : "");
  }
}

class Item {
  constructor(info) {
    this.about = el("span", { class: "about" });
    const title = el("span", { class: "title", dir: "auto" }, info.title || info.id);
    const text = el("p", { class: "text", dir: "auto" }, info.text);
    this.part = el("div", { class: "part" });
    const details = el("details", {}, el("summary", {}, title, this.about), text);
    this.node = el("li", {}, details, this.part);
  }

  update(info, measure, largest) {
    this.about.replaceChildren(el("code", {}, info.id));
    if (info.score !== null && info.score !== undefined) this.about.append(el("span", {}, `score ${info.score.toFixed(2)}`));
    for (const { name, rank, score } of info.sources ?? []) {
      const title = `What the index “${name}” found it with: its rank there, and its score on that index's own scale`;
      this.about.append(el("span", { class: "source", title }, `${name} #${rank} (${score.toPrecision(3)})`));
    }
    if (info.tier) this.about.append(el("span", { class: "chip", title: TIERS[info.tier] ?? null }, info.tier));
    this.part.replaceChildren();
    if (measure && typeof info.contribution === "number") this.part.append(...contribution(info, measure, largest));
  }
}

function contribution(info, measure, largest) {
  const signed = measure === "leave_one_out";
  const share = largest > 0 ? Math.abs(info.contribution) / largest : 0;
  const bar = el("span", { class: "bar" });
  const negative = info.contribution < 0;
  bar.style.setProperty("--width", `${share * (signed ? 50 : 100)}%`);
  bar.style.setProperty("--from", `${signed ? (negative ? 50 - share * 50 : 50) : 0}%`);
  const track = el("span", { class: signed ? "track signed" : "track", "aria-hidden": "true" }, bar);
  const sign = signed && info.contribution >= 0 ? "+" : "";
  const rounded = signed ? info.contribution.toFixed(2) : info.contribution.toPrecision(3);
  const number = `${sign}${rounded}`.replace("-", "−");
  const spoken = el("span", { class: "spoken" }, signed ? "Contribution, leave one out: " : "Length of its step: ");
  return [spoken, track, el("span", { class: "value" }, number)];
}
