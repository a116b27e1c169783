// The form: the question, the methods to ask, and with what.

import { byId, count, el } from "./dom.js";

const form = byId("ask");
const question = byId("question");
let longest = Infinity;

/** One checkbox per method; those that were checked before stay so, and at first all are. */
export function showMethods(methods) {
  const boxes = [...form.querySelectorAll("input[name=methods]")];
  const unchecked = new Set(boxes.filter((box) => !box.checked).map((box) => box.value));
  const choices = methods.map(({ name, summary }) => {
    const box = el("input", { type: "checkbox", name: "methods", value: name });
    box.checked = !unchecked.has(name);
    return el("label", { class: "choice" }, box, el("span", {}, el("b", {}, name), el("small", {}, summary)));
  });
  byId("methods").replaceChildren(...choices);
}

/** Bounds of the fields; a value beyond them is brought back. */
export function applyLimits(limits) {
  longest = limits.max_question_characters;
  for (const [name, most] of [["k", limits.max_k], ["gamma", limits.max_gamma], ["max_new_tokens", limits.max_new_tokens]]) {
    const field = form.elements.namedItem(name);
    field.max = String(most);
    if (Number(field.value) > most) field.value = String(most);
  }
  checkQuestion();
}

/** The request, or null if something is wrong; the browser then says what. */
export function read() {
  checkQuestion();
  checkMethods();
  if (!form.reportValidity()) return null;
  const data = new FormData(form);
  const number = (name) => Number(data.get(name));
  const body = {
    question: data.get("question").trim(),
    methods: data.getAll("methods"),
    k: number("k"),
    gamma: number("gamma"),
    max_new_tokens: number("max_new_tokens"),
    stream: true,
  };
  if (data.get("contributions")) body.contributions = data.get("contributions");
  return body;
}

/** Points at the field that the server found fault with. */
export function markField(name) {
  for (const field of form.elements) field.removeAttribute("aria-invalid");
  const found = name ? form.elements.namedItem(name) : null;
  const field = found instanceof RadioNodeList ? found[0] : found;
  if (!field) return;
  field.setAttribute("aria-invalid", "true");
  field.focus();
}

function checkQuestion() {
  const length = [...question.value].length;
  const note = byId("question-count");
  note.hidden = length < longest * 0.8;
  note.textContent = `${count(length)} of ${count(longest)} characters`;
  let fault = question.value.trim() ? "" : "Ask a question first.";
  if (length > longest) fault = `The question is longer than ${count(longest)} characters.`;
  question.setCustomValidity(fault);
}

function checkMethods() {
  const boxes = [...form.querySelectorAll("input[name=methods]")];
  const fault = boxes.some((box) => box.checked) ? "" : "Choose at least one method.";
  for (const box of boxes) box.setCustomValidity(box === boxes[0] ? fault : "");
}

question.addEventListener("input", checkQuestion);
byId("methods").addEventListener("change", checkMethods);
