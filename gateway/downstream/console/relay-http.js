/** The HTTP part of `relay.js`: requests to one session, errors, parsing of an event stream, waits. */

const BACKOFF_MS = 500;
const MAX_BACKOFF_MS = 15_000;
export const REQUEST_MS = 30_000;
/** A constant of its own: Vite takes a `new URL` that contains `import.meta.url` for a file to copy. */
const MODULE = import.meta.url;

export class RelayError extends Error {
  constructor(code, message, { status = 0, problem = null, fatal = false, dropped = [] } = {}) {
    super(message);
    this.name = "RelayError";
    Object.assign(this, { code, status, problem, fatal, dropped });
  }

  /** Whether the same request may succeed later. An answer without a problem object came from a proxy on the way. */
  get retryable() {
    return this.problem ? this.problem.retryable === true : this.status !== 413 && this.code === "network";
  }
}

/** Sends requests to one session with its credential. */
export class Http {
  #request;
  #upstreamKey;
  #gone = new AbortController();

  constructor({ base, key, ticket, sessionId, readOnly, upstreamKey, fetch }) {
    Object.assign(this, { base, key, ticket, sessionId, readOnly });
    this.#upstreamKey = upstreamKey;
    this.#request = fetch ?? ((...request) => globalThis.fetch(...request));
  }

  /** End every request that runs. */
  abort() {
    this.#gone.abort();
  }

  async json(path, options, from) {
    const answer = await this.fetch(path, options, from);
    try {
      return await answer.json();
    } catch (error) {
      throw new RelayError("network", `The answer broke off: ${error.message}`);
    }
  }

  /** Send a request to a path below the session, or to `from`. `patience` in ms, 0 for a stream. */
  async fetch(
    path, { method = "GET", body, headers = {}, accept = "application/json", signal, patience = REQUEST_MS } = {}, from,
  ) {
    const signals = [this.#gone.signal, signal, patience ? AbortSignal.timeout(patience) : null].filter(Boolean);
    const sent = { Accept: accept, ...headers };
    if (body !== undefined) sent["Content-Type"] = "application/json";
    if (this.key) sent.Authorization = `Bearer ${this.key}`;
    if (this.#upstreamKey && method === "POST") sent["X-Upstream-Authorization"] = `Bearer ${this.#upstreamKey}`;
    const url = from ? new URL(from, this.base) : this.url(path, path.includes("?") ? {} : this.ticketIfNeeded);
    let answer;
    try {
      answer = await this.#request(url, { method, body, headers: sent, cache: "no-store", signal: AbortSignal.any(signals) });
    } catch (error) {
      throw new RelayError("network", `No answer: ${error.message}`);
    }
    if (answer.status === 204 && method !== "DELETE") throw new RelayError("session-closed", "Read to its end.");
    if (answer.ok) return answer;
    const problem = await answer.json().catch(() => null);
    throw new RelayError(
      problem?.code ?? "network", problem?.detail ?? `The answer was ${answer.status}.`, { status: answer.status, problem });
  }

  get ticketIfNeeded() {
    return this.readOnly ? { ticket: this.ticket } : {};
  }

  url(path, parameters = {}) {
    const url = new URL(`v1/sessions/${this.sessionId}${path}`, this.base);
    for (const [name, value] of Object.entries(parameters)) if (value !== null) url.searchParams.set(name, value);
    return url;
  }
}

/** Return the Http for a channel's options: a new session, a joined one, or that of a ticket. */
export function httpOf(options, position) {
  const base = new URL(options.gateway ?? new URL(".", MODULE), globalThis.location?.href);
  if (!base.protocol.startsWith("http")) throw new TypeError("Outside a page, `gateway` is needed");
  if (!base.pathname.endsWith("/")) base.pathname += "/";
  const { upstreamKey, fetch, streamUrl } = options;
  const key = position.key ?? options.key ?? null;
  const made = { base, key, ticket: position.ticket ?? null, sessionId: position.id ?? null, upstreamKey, fetch };
  if (streamUrl) {
    const url = new URL(streamUrl, base);
    made.ticket = url.searchParams.get("ticket");
    made.base = new URL(url.pathname.replace(/v1\/sessions\/[^/]+\/events$/, ""), url);
    made.sessionId = url.pathname.split("/").at(-2);
  }
  return new Http({ ...made, readOnly: Boolean(streamUrl && !key) });
}

/** Read an event stream (WHATWG HTML 9.2.6) and call `take(name, data, id)` for each event of it. */
export async function parse(answer, take) {
  let rest = "";
  let [name, data, id] = ["message", null, null];
  for await (const text of texts(answer.body)) {
    rest += text;
    // A CR at the end may be the first half of a CR LF.
    const lines = rest.split(/\r\n|\n|\r(?!$)/);
    rest = lines.pop();
    for (const line of lines) {
      if (line === "") {
        if (data !== null) take(name, data, id);
        [name, data] = ["message", null];
        continue;
      }
      const [, field, value] = /^([^:]*):? ?(.*)$/s.exec(line);
      if (field === "data") data = data === null ? value : `${data}\n${value}`;
      else if (field === "event") name = value || "message";
      else if (field === "id" && !value.includes("\0")) id = value;
    }
  }
}

async function* texts(body) {
  const reader = body.getReader();
  const decoder = new TextDecoder();
  for (;;) {
    const { done, value } = await reader.read().catch((error) => {
      throw new RelayError("network", `The stream broke off: ${error.message}`);
    });
    if (done) return;
    yield decoder.decode(value, { stream: true });
  }
}

export function sleep(ms) {
  let wake;
  const done = new Promise((resolve) => {
    const timer = setTimeout(resolve, ms);
    wake = () => {
      clearTimeout(timer);
      resolve();
    };
  });
  return { done, wake };
}

/** Return a wait that doubles with each attempt, with jitter, so that clients do not come back in step. */
export function backoff(attempt) {
  return Math.min(MAX_BACKOFF_MS, BACKOFF_MS * 2 ** Math.min(attempt, 10)) * (0.5 + Math.random() / 2);
}

export function query(parameters) {
  return new URLSearchParams(parameters).toString();
}

/** Return an Idempotency-Key. crypto.randomUUID needs a secure context, which a gateway on plain http is not. */
export function randomKey() {
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}

export function errorEvent(error) {
  const event = new Event("error");
  event.error = error;
  return event;
}
