// What the server answers from: its releases, their banks, and its limits.

import { byId, bytes, count, counted, el, facts } from "./dom.js";

/** Shows what `GET v1/bank` said. */
export function showServer({ releases, limits }) {
  const [main] = releases;
  const others = releases.length > 1 ? ` · ${counted(releases.length, "release")}` : "";
  show("ready", `${counted(main.passages, "passage")} · bank ${main.bank_version}${others}`);
  byId("server-sheet").replaceChildren(...releases.map(release), el("h2", {}, "Limits"), limitsOf(limits));
}

/** Shows that the server is not (yet) there. */
export function showNoServer(message) {
  show("failed", message);
  byId("server-sheet").replaceChildren(el("p", {}, message));
}

function show(state, line) {
  byId("server").dataset.state = state;
  byId("server-line").textContent = line;
}

function release(item) {
  const share = `${Math.round(item.share * 100)}% of requests`;
  const entries = [
    ["bank", item.bank],
    ["version", item.bank_version],
    ["passages", count(item.passages)],
    ["one gradient", `${bytes(item.bytes_per_atom)}, ${item.codec}`],
    ["MetaInit", item.meta_init],
    ["fingerprint", el("code", {}, item.fingerprint)],
  ];
  return el("div", {}, el("h2", {}, item.name, " ", el("span", { class: "faint" }, share)), facts(entries));
}

function limitsOf(limits) {
  return facts([
    ["k", count(limits.max_k)],
    ["γ", count(limits.max_gamma)],
    ["answer", counted(limits.max_new_tokens, "token")],
    ["question", counted(limits.max_question_characters, "character")],
  ]);
}
