// The page: loads what the server has, asks, stops, and asks for a key if the server wants one.

import { Board } from "./answers.js";
import { compare, get, hasKey, keepKey } from "./api.js";
import { byId, el } from "./dom.js";
import { applyLimits, markField, read, showMethods } from "./options.js";
import { showNoServer, showServer } from "./server.js";

const RETRY_MILLISECONDS = 5000;
const methods = new Map();
let running = null; // {body, controller} of the question that is being answered
const afterKey = new Set(); // what waits for a key
let retry = 0;

async function load() {
  clearTimeout(retry);
  try {
    const [listed, bank] = await Promise.all([get("v1/methods"), get("v1/bank")]);
    methods.clear();
    for (const method of listed.methods) methods.set(method.name, method);
    showMethods(listed.methods);
    applyLimits(bank.limits);
    showServer(bank);
  } catch (error) {
    showNoServer(error.status === 401 ? "a key is needed" : error.message);
    if (error.status === 401) askForKey(load);
    else retry = setTimeout(load, RETRY_MILLISECONDS);
  }
}

async function ask() {
  const body = read();
  if (!body || same(running?.body, body)) return;
  if (!body.methods.length) {
    showProblem("The server has not yet said which methods it has.");
    return;
  }
  stop();
  const run = { body, controller: new AbortController() };
  begin(run);
  const board = new Board(byId("answers"), body, methods, announce);
  try {
    for await (const event of compare(body, run.controller.signal)) board.take(event);
    board.end("failed", "The server sent no answer.");
  } catch (error) {
    if (run.controller.signal.aborted) board.end("stopped", "Stopped.");
    else failed(error, board);
  } finally {
    finish(run);
  }
}

function begin(run) {
  running = run;
  byId("spoken").replaceChildren();
  showProblem(null);
  markField(null);
  byId("stop").hidden = false;
  byId("ask").setAttribute("aria-busy", "true");
}

function finish(run) {
  if (running !== run) return;
  running = null;
  byId("ask").removeAttribute("aria-busy");
  if (document.activeElement === byId("stop")) byId("question").focus();
  byId("stop").hidden = true;
}

function stop() {
  running?.controller.abort();
}

function failed(error, board) {
  if (board.touched) board.end("failed", "Not finished.");
  else byId("answers").replaceChildren();
  if (error.status === 401) {
    askForKey(ask);
    return;
  }
  const again = error.retryAfter ? ` Try again in ${error.retryAfter} s.` : "";
  showProblem(`${error.message}${again}`);
  markField(error.field);
}

function askForKey(then) {
  afterKey.add(then);
  byId("key-note").textContent = hasKey() ? "The server refused this key." : "This server answers only with a key.";
  byId("key-form").hidden = false;
  byId("key").focus();
}

function showProblem(message) {
  byId("problem").replaceChildren(...(message === null ? [] : [el("p", { class: "note failure" }, message)]));
}

function announce(text) {
  byId("spoken").append(el("p", {}, text));
}

function same(one, other) {
  return one !== undefined && JSON.stringify(one) === JSON.stringify(other);
}

byId("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  ask();
});
byId("ask").addEventListener("keydown", (event) => {
  const chord = event.ctrlKey || event.metaKey;
  const plain = event.target === byId("question") && !event.shiftKey;
  if (event.key !== "Enter" || event.isComposing || !(chord || plain)) return;
  event.preventDefault();
  ask();
});
byId("stop").addEventListener("click", stop);
document.addEventListener("keydown", (event) => {
  if (event.key !== "Escape" || event.isComposing) return;
  stop();
  byId("server").open = false;
});
byId("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  keepKey(byId("key").value);
  byId("key").value = "";
  byId("key-form").hidden = true;
  byId("question").focus();
  const waiting = [load, ...afterKey];
  afterKey.clear();
  for (const action of new Set(waiting)) action();
});
load();
