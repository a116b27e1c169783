// The server's HTTP interface. Addresses are relative, so the page works under any route prefix.

import { serverSentEvents } from "./sse.js";

const KEY = "regrad.key";

/** What went wrong, as the server says it: `status` is 0 if it did not answer at all. */
export class Problem extends Error {
  constructor(status, message, field = null, retryAfter = null) {
    super(message);
    Object.assign(this, { status, field, retryAfter });
  }
}

export const hasKey = () => sessionStorage.getItem(KEY) !== null;
export const keepKey = (key) => sessionStorage.setItem(KEY, key);

/** The JSON at `path`. */
export async function get(path) {
  const response = await request(path, {});
  return response.json();
}

/** Asks; yields {event, ...data} as the answers come. Ends with `end`, or throws a `Problem`. */
export async function* compare(body, signal) {
  const response = await request("v1/compare", {
    method: "POST",
    headers: { "content-type": "application/json", accept: "text/event-stream" },
    body: JSON.stringify(body),
    signal,
  });
  for await (const { event, data } of serverSentEvents(response.body)) {
    yield { ...JSON.parse(data), event };
    if (event === "end") return;
  }
  throw new Problem(0, "the connection ended before the answers did");
}

async function request(path, options) {
  const headers = new Headers(options.headers);
  if (hasKey()) headers.set("authorization", `Bearer ${sessionStorage.getItem(KEY)}`);
  let response;
  try {
    response = await fetch(path, { ...options, headers, cache: "no-store" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem(0, "the server cannot be reached");
  }
  if (!response.ok) throw await problemOf(response);
  return response;
}

async function problemOf(response) {
  const content = await response.json().catch(() => null);
  const error = content?.error ?? {};
  const message = error.message ?? `the server answered with status ${response.status}`;
  return new Problem(response.status, message, error.field ?? null, response.headers.get("retry-after"));
}
