// The answers, side by side: one card per method, filled as the events of the stream come in.

import { count, counted, el, facts } from "./dom.js";
import { Passages } from "./passages.js";
import { Timing } from "./timing.js";

/** All cards of one question. */
export class Board {
  constructor(place, asked, methods, announce) {
    this.cards = new Map(asked.methods.map((name) => [name, new Card(name, methods.get(name), asked.contributions)]));
    this.announce = announce;
    this.touched = false; // whether any event came
    const settings = `k ${asked.k} · γ ${asked.gamma} · at most ${counted(asked.max_new_tokens, "token")}`;
    const head = el("div", { class: "asked" }, el("h2", { dir: "auto" }, asked.question), el("p", {}, settings));
    const grid = el("div", { class: "cards" }, ...[...this.cards.values()].map((card) => card.node));
    place.replaceChildren(head, grid);
  }

  /** One event of the stream. Events of methods that were not asked for are dropped. */
  take({ event, method, ...data }) {
    const card = this.cards.get(method);
    if (!card) return;
    this.touched = true;
    if (event === "passages") card.found(data.passages, data.milliseconds);
    else if (event === "token") card.token(data.text);
    else if (event === "done") card.done(data);
    else if (event === "error") card.failed(data.error.message);
    if (event === "done") {
      this.#scale();
      this.announce(`${method} answers: ${data.answer || "nothing"}`);
    }
    if (event === "error") this.announce(`${method} failed: ${data.error.message}`);
  }

  /** Marks every card that is not finished. */
  end(state, note) {
    for (const card of this.cards.values()) card.end(state, note);
  }

  #scale() {
    const timings = [...this.cards.values()].map((card) => card.timing);
    const span = Math.max(...timings.map((timing) => timing.span));
    for (const timing of timings) timing.scaleTo(span);
  }
}

class Card {
  constructor(name, method, contributions) {
    this.retrieves = method?.retrieves ?? true;
    this.answer = el("p", { class: "answer", dir: "auto" });
    this.text = this.answer.appendChild(document.createTextNode(""));
    this.state = el("p", { class: "state" });
    this.notes = el("div", { class: "notes" });
    this.facts = el("div", { class: "facts" });
    this.timing = new Timing();
    this.passages = new Passages(contributions);
    this.origin = el("footer", {});
    this.node = el(
      "article",
      { class: "card", "aria-label": name, "data-method": name },
      el("header", {}, el("h3", {}, name), ...tags(method)),
      el("div", { class: "said" }, this.answer, this.state, this.notes),
      this.facts,
      section("Time", this.timing.node),
      section("Passages", this.passages.node),
      this.origin,
    );
    if (!this.retrieves) this.passages.explain("None: this method does not retrieve.");
    this.#enter("working", this.retrieves ? "searching…" : "waiting…");
  }

  found(passages, milliseconds) {
    this.passages.show(passages);
    this.timing.show({ retrieve: milliseconds });
    this.#enter("working", "reading…");
  }

  token(text) {
    this.text.appendData(text);
    this.#enter("writing", "");
  }

  done(reply) {
    this.text.data = reply.answer;
    const { prompt_tokens: prompt, completion_tokens: completion } = reply.usage;
    const cut = reply.finish_reason === "length" ? `Cut off after ${counted(completion, "token")}.` : "";
    this.#enter("done", reply.answer ? cut : "The answer is empty.");
    if (this.retrieves) this.passages.show(reply.passages);
    this.timing.show(reply.milliseconds);
    for (const { reason, policy, passage_ids: ids } of reply.degraded) {
      this.#note("warning", `${reason}${ids.length ? ` (${ids.join(", ")})` : ""}`, policy);
    }
    const lengths = [["prompt", counted(prompt, "token")], ["answer", counted(completion, "token")]];
    this.facts.replaceChildren(facts([...lengths, ["batch", count(reply.batch_size)]]));
    this.origin.replaceChildren(facts([["release", reply.release], ["bank", reply.bank_version], ["request", reply.id]]));
  }

  failed(message) {
    this.#note("failure", message, "error");
    this.#enter("failed", "");
  }

  end(state, note) {
    if (["working", "writing"].includes(this.node.dataset.state)) this.#enter(state, note);
  }

  #note(kind, text, label) {
    this.notes.append(el("p", { class: `note ${kind}` }, el("strong", {}, label), " ", text));
  }

  #enter(state, note) {
    this.node.dataset.state = state;
    this.node.setAttribute("aria-busy", String(state === "working" || state === "writing"));
    this.state.textContent = note;
  }
}

function tags(method) {
  const names = [];
  if (method?.applies_gradients) names.push(el("span", { class: "tag accent" }, "gradients"));
  if (method?.passages_in_prompt) names.push(el("span", { class: "tag" }, "passages in prompt"));
  if (method && !names.length) names.push(el("span", { class: "tag" }, "model alone"));
  return names;
}

function section(title, content) {
  return el("section", {}, el("h4", {}, title), content);
}
