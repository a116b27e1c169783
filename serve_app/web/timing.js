// Where the time of one answer went: one bar per stage, each starting where the stage before it ended.

import { duration, el } from "./dom.js";

const STAGES = {
  retrieve: "search for passages",
  load: "fetch and sum the gradients",
  queue: "wait for a place in the batch",
  prefill: "read the prompt",
  decode: "write the answer",
};

/** The waterfall of one method. Bars of all methods share one scale, see `scaleTo`. */
export class Timing {
  constructor() {
    this.rows = new Map();
    for (const [stage, meaning] of Object.entries(STAGES)) this.#addRow(stage, meaning);
    this.#addRow("total", "from the request to the last token");
    const rows = [...this.rows.values()].map((row) => row.node);
    this.node = el("table", { class: "timing", "aria-label": "Time by stage" }, el("tbody", {}, ...rows));
    this.milliseconds = {};
  }

  /** Some or all stages, in milliseconds. */
  show(milliseconds) {
    Object.assign(this.milliseconds, milliseconds);
    for (const [stage, { node, value }] of this.rows) {
      const time = this.milliseconds[stage];
      if (time === undefined) continue;
      value.textContent = time > 0 ? duration(time) : "–";
      node.dataset.time = time > 0 ? "some" : "none";
    }
  }

  /** How much time the bars have to show. */
  get span() {
    return Math.max(this.milliseconds.total ?? 0, this.#end(Object.keys(STAGES)));
  }

  /** Draws the bars so that `span` milliseconds fill the whole width. */
  scaleTo(span) {
    let start = 0;
    for (const [stage, { bar }] of this.rows) {
      const time = this.milliseconds[stage] ?? 0;
      const from = stage === "total" ? 0 : start;
      bar.style.setProperty("--from", `${span > 0 ? (from / span) * 100 : 0}%`);
      bar.style.setProperty("--width", `${span > 0 ? (time / span) * 100 : 0}%`);
      start += time;
    }
  }

  #end(stages) {
    return stages.reduce((sum, stage) => sum + (this.milliseconds[stage] ?? 0), 0);
  }

  #addRow(stage, meaning) {
    const bar = el("span", { class: "bar" });
    const value = el("td", { class: "value" }, "·");
    const track = el("td", { class: "track", "aria-hidden": "true" }, bar);
    const name = el("th", { scope: "row", title: meaning }, stage);
    this.rows.set(stage, { bar, value, node: el("tr", { class: stage, "data-time": "unknown" }, name, track, value) });
  }
}
