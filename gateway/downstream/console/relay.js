/**
 * A data channel over HTTP: an object that looks like an `RTCDataChannel` to OpenAI's Realtime API, made of POSTs up and
 * an event stream down. One module, no dependencies, no build. Knows the gateway's API and nothing of what events mean.
 *
 *   import { RelayChannel } from "/relay.js";
 *   const dataChannel = new RelayChannel({ session: { instructions: "Be brief." } });
 *   dataChannel.addEventListener("message", (event) => console.log(JSON.parse(event.data).type));
 *   dataChannel.onopen = () => dataChannel.send(JSON.stringify({ type: "response.create" }));
 *
 * new RelayChannel(options). Everything is optional:
 *
 *   gateway        the gateway's URL; default: where this module came from
 *   key            API key, or a session's client secret (`gwk_…`); sent in a header, never in a URL
 *   upstreamKey    the caller's own `ek_…`, where the gateway is told to pass it on
 *   session, metadata, detachGraceSeconds   what a new session is made with
 *   position       `{id, key, ticket, after}`: join this session instead (see `position` below)
 *   streamUrl      a ticket URL (`stream_url`, or that of `POST …/tickets`): join its session, read only
 *   after          where to begin: an event's id, "earliest" (default) or "now"
 *   label          default "oai-events"
 *   transports     which to use, best first; default ["eventsource", "stream", "poll"]
 *   muteSeconds    how long a stream may say nothing at its beginning before it counts as held back; default 10
 *   heartbeatSeconds   5-60, asked of the gateway; default: the gateway's own. A stream that stays silent for 2.5 is cut
 *   EventSource, fetch   to be used instead of the global ones; without any EventSource the list begins with "stream"
 *
 * As on an RTCDataChannel: send(text), close(), readyState, bufferedAmount, bufferedAmountLowThreshold, label, ordered,
 * addEventListener and onopen, onmessage, onclosing, onclose, onerror, onbufferedamountlow. `send` throws
 * InvalidStateError unless `readyState` is "open", OperationError beyond 16 MiB of unsent events, and NotAllowedError on
 * a channel that is read only. `message` events carry `data` (the event's JSON text) and `lastEventId`.
 * A cut connection does not close the channel: it goes on from where it was, and what was sent meanwhile follows.
 *
 * Besides: sessionId; session (the object the gateway gave); transport ("eventsource", "stream", "poll"); connected
 * (false while cut off); position (what another RelayChannel, after a reload say, needs to go on from here); detach(),
 * which ends the channel and leaves the session. `close` ends the session if this channel opened it, else only itself.
 * The gateway's own events are told under their names with JSON in `data`: gateway.open, gateway.gap (events were lost:
 * `missed`), gateway.recovering, gateway.recovered, gateway.expiring, gateway.draining, gateway.rotating, gateway.ping,
 * gateway.superseded (too many readers: this one was let go), gateway.error, gateway.closed. `connectionchange` is told
 * when `transport` or `connected` changes.
 *
 * An `error` event has `error`, a RelayError: `code` (the gateway's, or "network"), `status` (0 without an answer),
 * `problem` (the RFC 9457 object or null), `fatal` (whether the channel ends with it) and `dropped` (the texts that were
 * refused, for an event the gateway did not take). Nothing else is ever dropped, doubled or put in another order: a
 * batch is repeated under one Idempotency-Key until it is answered.
 */

const OWN_EVENTS = (
  "open gap ping rotating superseded error recovering recovered expiring draining closed"
).split(" ").map((name) => `gateway.${name}`);

// What Chromium's data channels hold before `send` throws.
const MAX_BUFFERED_BYTES = 16 * 1024 * 1024;
// Used until the session object tells the gateway's own.
const LIMITS = { max_batch_events: 256, max_body_bytes: 1048576, heartbeat_seconds: 15 };
// A stream that lived this long was no victim of the way there; three in a row that did not are.
const HEALTHY_MS = 20_000;
const STRIKES = 3;
const SILENT_HEARTBEATS = 2.5;
const REQUEST_MS = 30_000;
const OPEN_MS = 60_000;
const LAST_WORDS_MS = 5_000;
const POLL_SECONDS = 25;
const BACKOFF_MS = 500;
const MAX_BACKOFF_MS = 15_000;

const utf8 = new TextEncoder();

export class RelayError extends Error {
  constructor(code, message, { status = 0, problem = null, fatal = false, dropped = [] } = {}) {
    super(message);
    this.name = "RelayError";
    Object.assign(this, { code, status, problem, fatal, dropped });
  }

  /** What is not in the gateway's own form came from something on the way, and says nothing about the request. */
  get retryable() {
    return this.problem ? this.problem.retryable === true : this.status !== 413 && this.code === "network";
  }
}

export class RelayChannel extends EventTarget {
  #options;
  #base;
  #key;
  #ticket = null;
  #owned = false;
  #cursor;
  #state = "connecting";
  #queue = [];
  #buffered = 0;
  #sender = null;
  #entering;
  #transports;
  #level = 0;
  #connected = false;
  #heartbeat;
  #limits = LIMITS;
  #gone = new AbortController();
  #cut = () => {};
  #resting = new Set();
  #handlers = new Map();

  constructor(options = {}) {
    super();
    const position = options.position ?? {};
    this.#options = options;
    this.#base = new URL(options.gateway ?? new URL(".", import.meta.url), globalThis.location?.href);
    if (!this.#base.protocol.startsWith("http")) throw new TypeError("Outside a page, `gateway` is needed");
    if (!this.#base.pathname.endsWith("/")) this.#base.pathname += "/";
    this.#key = position.key ?? options.key ?? null;
    this.#ticket = position.ticket ?? null;
    this.#cursor = position.after ?? options.after ?? "earliest";
    this.#heartbeat = options.heartbeatSeconds ?? LIMITS.heartbeat_seconds;
    this.label = options.label ?? "oai-events";
    this.ordered = true;
    this.bufferedAmountLowThreshold = 0;
    this.session = null;
    this.sessionId = position.id ?? null;
    if (options.streamUrl) {
      const url = new URL(options.streamUrl, this.#base);
      this.#ticket = url.searchParams.get("ticket");
      this.#base = new URL(url.pathname.replace(/v1\/sessions\/[^/]+\/events$/, ""), url);
      this.sessionId = url.pathname.split("/").at(-2);
    }
    this.readOnly = Boolean(options.streamUrl && !this.#key);
    const wanted = options.transports ?? ["eventsource", "stream", "poll"];
    this.#transports = wanted.filter((one) => one !== "eventsource" || this.#EventSource);
    if (!this.#transports.length) this.#transports = ["poll"];
    globalThis.addEventListener?.("online", this.#backOnline);
    globalThis.addEventListener?.("offline", this.#wentOffline);
    this.#run();
  }

  get readyState() { return this.#state; }
  get bufferedAmount() { return this.#buffered; }
  get transport() { return this.#transports[this.#level]; }
  get connected() { return this.#connected; }
  /** Holds the client secret rather than the API key, where there is one: it may be stored. */
  get position() {
    const key = this.#key && (this.session?.client_secret?.value ?? this.#key);
    return { id: this.sessionId, key, ticket: this.#ticket, after: this.#cursor };
  }

  get #EventSource() { return this.#options.EventSource ?? globalThis.EventSource; }

  send(data) {
    if (this.#state !== "open") throw new DOMException(`The channel is ${this.#state}`, "InvalidStateError");
    if (this.readOnly) throw new DOMException("A ticket only reads", "NotAllowedError");
    const text = typeof data === "string" ? data : new TextDecoder().decode(data);
    const size = utf8.encode(text).length;
    if (this.#buffered + size > MAX_BUFFERED_BYTES) throw new DOMException("Too much is unsent", "OperationError");
    this.#queue.push({ text, size });
    this.#buffered += size;
    this.#sender ??= this.#drain();
  }

  /** End the channel, once all that was sent is delivered, and the session with it if this channel opened it. */
  close() {
    this.#leave(true);
  }

  /** End the channel and leave the session open; `position` tells another where to go on. */
  detach() {
    this.#leave(false);
  }

  async #leave(endSession) {
    if (this.#state === "closing" || this.#state === "closed") return;
    this.#state = "closing";
    this.#tell(new Event("closing"));
    const patience = sleep(LAST_WORDS_MS);
    // A session that is being opened is waited for: nobody else could end it.
    await Promise.race([this.#sender ?? this.#entering, patience.done]);
    patience.wake();
    if (endSession && this.#owned) {
      await this.#fetch("", { method: "DELETE", patience: LAST_WORDS_MS }).catch(() => {});
    }
    this.#end();
  }

  // --- the way in ---------------------------------------------------------------------------------------------------

  async #run() {
    try {
      const entering = this.sessionId === null ? this.#open() : this.#join();
      this.#entering = entering.catch(() => {});
      await entering;
      if (this.#state !== "connecting") return;
      this.#limits = { ...LIMITS, ...this.session.limits };
      this.#heartbeat = this.#options.heartbeatSeconds ?? this.#limits.heartbeat_seconds;
      this.#state = "open";
      this.#tell(new Event("open"));
      await this.#receive();
    } catch (error) {
      this.#fail(error);
    }
  }

  async #open() {
    const { session, metadata, detachGraceSeconds } = this.#options;
    const body = JSON.stringify({ session, metadata, detach_grace_seconds: detachGraceSeconds });
    const headers = { "Idempotency-Key": randomKey() };
    const deadline = Date.now() + OPEN_MS;
    this.session = await this.#untilAnswered(
      () => this.#json("", { method: "POST", body, headers, patience: OPEN_MS }, "v1/sessions"), deadline);
    this.sessionId = this.session.id;
    this.#owned = true;
    this.#ticket = new URL(this.session.stream_url, this.#base).searchParams.get("ticket");
  }

  async #join() {
    this.session = await this.#untilAnswered(() => this.#json(""));
    if (this.#ticket || !this.#transports.includes("eventsource")) return;
    this.#ticket = (await this.#untilAnswered(() => this.#json("/tickets", { method: "POST" }))).ticket;
  }

  // --- down ---------------------------------------------------------------------------------------------------------

  /**
   * Read until the channel ends. A stream that ends otherwise than by the gateway's word leaves a question: was it the
   * network, or something on the way that cannot stand streams? A short request answers it, and brings what was missed.
   */
  async #receive() {
    const read = { eventsource: () => this.#readEventSource(), stream: () => this.#readStream() };
    let strikes = 0;
    while (!this.#over) {
      if (this.transport === "poll") {
        await this.#untilAnswered(() => this.#poll(POLL_SECONDS));
        continue;
      }
      const { why, lived } = await read[this.transport]();
      if (this.#over) return;
      if (why === "rotated") {
        strikes = 0;
        await this.#pause(Math.random() * BACKOFF_MS);
        continue;
      }
      this.#setConnection(this.#level, false);
      let tries = 0;
      await this.#untilAnswered(() => {
        tries += 1;
        return this.#poll(0);
      });
      if (why === "restarted" || tries > 1 || lived >= HEALTHY_MS) strikes = 0;
      else strikes += why === "mute" ? STRIKES : 1;
      if (strikes >= STRIKES && this.#level < this.#transports.length - 1) {
        strikes = 0;
        // A long-poll has just been answered; a stream has still to show that it is better than the last one.
        this.#setConnection(this.#level + 1, this.#transports[this.#level + 1] === "poll");
      } else if (strikes) {
        await this.#pause(backoff(strikes - 1));
      }
    }
  }

  #readEventSource() {
    return new Promise((resolve) => {
      const source = new this.#EventSource(this.#url("/events", { ticket: this.#ticket, ...this.#wanted() }));
      const watch = this.#watch((end) => {
        source.close();
        resolve(end);
      });
      const take = ({ type, data, lastEventId }) => watch.saw(() => this.#take(type, data, lastEventId));
      source.addEventListener("message", take);
      for (const name of OWN_EVENTS) source.addEventListener(name, take);
      source.onerror = () => watch.end("cut");
    });
  }

  async #readStream() {
    let finish;
    const ended = new Promise((resolve) => { finish = resolve; });
    const stop = new AbortController();
    const watch = this.#watch((end) => {
      stop.abort();
      finish(end);
    });
    try {
      const body = JSON.stringify({ format: "sse", ...this.#wanted() });
      const answer = await this.#fetch(
        "/events/stream", { method: "POST", body, accept: "text/event-stream", signal: stop.signal, patience: 0 });
      await parse(answer, (...event) => watch.saw(() => this.#take(...event)));
    } catch (error) {
      if (!watch.over && !error.retryable) {
        watch.end("cut");
        throw error;
      }
    }
    watch.end("cut");
    return ended;
  }

  #wanted() {
    const { heartbeatSeconds } = this.#options;
    return { after: this.#cursor, heartbeat_as: "event", ...(heartbeatSeconds && { heartbeat: heartbeatSeconds }) };
  }

  /** Watch over one stream: what it says in time keeps it, silence ends it. `done` is called once, with how it went. */
  #watch(done) {
    const began = Date.now();
    let last = null;
    let timer;
    const watch = {
      over: false,
      saw: (take) => {
        if (watch.over) return;
        last = Date.now();
        this.#setConnection(this.#level, true);
        arm(this.#heartbeat * SILENT_HEARTBEATS * 1000);
        if (take() === "gateway.rotating") watch.end("rotated");
      },
      end: (why) => {
        if (watch.over) return;
        watch.over = true;
        clearTimeout(timer);
        this.#cut = () => {};
        done({ why, lived: last === null ? 0 : last - began });
      },
    };
    const arm = (ms) => {
      clearTimeout(timer);
      timer = setTimeout(() => watch.end(last === null ? "mute" : "cut"), ms);
    };
    this.#cut = watch.end;
    arm((this.#options.muteSeconds ?? 10) * 1000);
    return watch;
  }

  async #poll(wait) {
    let page;
    try {
      page = await this.#json(
        `/events?${query({ format: "json", wait, after: this.#cursor, ...this.#ticketIfNeeded })}`,
        { patience: REQUEST_MS + wait * 1000 });
    } catch (error) {
      if (error.code !== "cursor-expired") throw error;
      // Only a stream tells a gap together with what follows it, so that nothing can be lost in between.
      await this.#catchUp();
      return;
    }
    this.#setConnection(this.#level, true);
    for (const { id, event } of page.events) {
      if (this.#over) return;
      const own = OWN_EVENTS.includes(event.type);
      this.#take(own ? event.type : "message", JSON.stringify(event), id);
    }
    this.#cursor = page.cursor;
  }

  async #catchUp() {
    const body = JSON.stringify({ format: "sse", after: this.#cursor, max_age: 1 });
    const answer = await this.#fetch(
      "/events/stream", { method: "POST", body, accept: "text/event-stream", patience: 2 * REQUEST_MS });
    await parse(answer, (...event) => this.#take(...event));
  }

  /** Tell one event and move the cursor past it. Gives its name. */
  #take(name, data, id) {
    if (this.#over) return name;
    if (id) this.#cursor = id;
    const own = name === "message" ? null : JSON.parse(data);
    if (name === "gateway.open") this.#heartbeat = own.heartbeat_seconds ?? this.#heartbeat;
    this.#tell(new MessageEvent(name, { data, lastEventId: id ?? "", origin: this.#base.origin }));
    if (name === "gateway.closed") this.#end();
    if (name === "gateway.superseded") {
      this.#fail(new RelayError("superseded", "Too many readers: the gateway let this one go."));
    }
    return name;
  }

  // --- up -----------------------------------------------------------------------------------------------------------

  async #drain() {
    await null; // What one turn of the page sends makes one batch.
    while (this.#queue.length && !this.#over) {
      const batch = this.#nextBatch();
      await this.#deliver(batch);
      const before = this.#buffered;
      this.#queue.splice(0, batch.length);
      for (const { size } of batch) this.#buffered -= size;
      const threshold = this.bufferedAmountLowThreshold;
      if (before > threshold && this.#buffered <= threshold) this.#tell(new Event("bufferedamountlow"));
    }
    this.#sender = null;
  }

  #nextBatch() {
    let bytes = 2;
    const fits = ({ size }, index) =>
      index < this.#limits.max_batch_events && (bytes += size + 1) <= this.#limits.max_body_bytes;
    const end = this.#queue.findIndex((event, index) => !fits(event, index));
    return this.#queue.slice(0, end === -1 ? this.#queue.length : Math.max(end, 1));
  }

  /** Send a batch until it is answered. One that is refused is sent again event by event, to lose only the bad one. */
  async #deliver(batch) {
    const texts = batch.map(({ text }) => text);
    const body = texts.length === 1 ? texts[0] : `[${texts.join(",")}]`;
    const headers = { "Idempotency-Key": randomKey() };
    try {
      await this.#untilAnswered(() => this.#json("/events", { method: "POST", body, headers }));
    } catch (error) {
      if (this.#over) return;
      if (batch.length > 1 && [400, 403, 413].includes(error.status)) {
        for (const event of batch) await this.#deliver([event]);
        return;
      }
      error.dropped = texts;
      this.#tell(errorEvent(error));
    }
  }

  // --- requests -----------------------------------------------------------------------------------------------------

  /** Repeat until there is an answer that means something, and give it. */
  async #untilAnswered(request, deadline = Infinity) {
    for (let attempt = 0; ; attempt += 1) {
      try {
        return await request();
      } catch (error) {
        if (this.#over || !error.retryable || Date.now() > deadline) throw error;
        if (error.status === 0 && this.#state !== "connecting") this.#setConnection(this.#level, false);
        const wanted = (error.problem?.retry_after ?? 0) * 1000;
        await this.#pause(wanted + backoff(attempt));
        if (this.#over) throw error;
      }
    }
  }

  async #json(path, options, from) {
    const answer = await this.#fetch(path, options, from);
    try {
      return await answer.json();
    } catch (error) {
      throw new RelayError("network", `The answer broke off: ${error.message}`);
    }
  }

  async #fetch(
    path, { method = "GET", body, headers = {}, accept = "application/json", signal, patience = REQUEST_MS } = {}, from,
  ) {
    const signals = [this.#gone.signal, signal, patience ? AbortSignal.timeout(patience) : null].filter(Boolean);
    const sent = { Accept: accept, ...headers };
    if (body !== undefined) sent["Content-Type"] = "application/json";
    if (this.#key) sent.Authorization = `Bearer ${this.#key}`;
    if (this.#options.upstreamKey && method === "POST") {
      sent["X-Upstream-Authorization"] = `Bearer ${this.#options.upstreamKey}`;
    }
    const url = from ? new URL(from, this.#base) : this.#url(path, path.includes("?") ? {} : this.#ticketIfNeeded);
    let answer;
    try {
      const request = this.#options.fetch ?? globalThis.fetch;
      answer = await request(url, { method, body, headers: sent, cache: "no-store", signal: AbortSignal.any(signals) });
    } catch (error) {
      throw new RelayError("network", `No answer: ${error.message}`);
    }
    if (answer.status === 204 && method !== "DELETE") throw new RelayError("session-closed", "Read to its end.");
    if (answer.ok) return answer;
    const problem = await answer.json().catch(() => null);
    throw new RelayError(
      problem?.code ?? "network", problem?.detail ?? `The answer was ${answer.status}.`, { status: answer.status, problem });
  }

  get #ticketIfNeeded() {
    return this.readOnly ? { ticket: this.#ticket } : {};
  }

  #url(path, parameters = {}) {
    const url = new URL(`v1/sessions/${this.sessionId}${path}`, this.#base);
    for (const [name, value] of Object.entries(parameters)) if (value !== null) url.searchParams.set(name, value);
    return url;
  }

  // --- what happens to the channel ----------------------------------------------------------------------------------

  get #over() { return this.#state === "closed"; }

  /** The network came back, perhaps another one: whatever is waited for or stands half dead is tried again, best first. */
  #backOnline = () => {
    this.#level = 0;
    for (const wake of this.#resting) wake();
    this.#cut("restarted");
  };

  /** Without waiting for the heartbeats that will not come. A gateway on this machine is found again at once. */
  #wentOffline = () => this.#cut("restarted");

  async #pause(ms) {
    const { done, wake } = sleep(ms);
    this.#resting.add(wake);
    await done;
    this.#resting.delete(wake);
  }

  #setConnection(level, connected) {
    if (level === this.#level && connected === this.#connected) return;
    this.#level = level;
    this.#connected = connected;
    this.#tell(new Event("connectionchange"));
  }

  #fail(error) {
    if (this.#over) return;
    if (error.code !== "session-closed") {
      error.fatal = true;
      this.#tell(errorEvent(error));
    }
    this.#end();
  }

  #end() {
    if (this.#over) return;
    this.#state = "closed";
    globalThis.removeEventListener?.("online", this.#backOnline);
    globalThis.removeEventListener?.("offline", this.#wentOffline);
    this.#setConnection(this.#level, false);
    this.#cut("cut");
    this.#gone.abort();
    for (const wake of this.#resting) wake();
    this.#tell(new Event("close"));
  }

  #tell(event) {
    this.dispatchEvent(event);
  }

  /** An `on…` attribute is a listener that can be replaced. */
  static #attribute(name) {
    Object.defineProperty(RelayChannel.prototype, `on${name}`, {
      get() { return this.#handlers.get(name) ?? null; },
      set(handler) {
        if (!this.#handlers.has(name)) {
          this.addEventListener(name, (event) => this.#handlers.get(name)?.call(this, event));
        }
        this.#handlers.set(name, typeof handler === "function" ? handler : null);
      },
      enumerable: true,
    });
  }

  static {
    for (const name of ["open", "message", "closing", "close", "error", "bufferedamountlow"]) this.#attribute(name);
  }
}

/** Read an event stream (WHATWG HTML 9.2.6) and call `take(name, data, id)` for each event of it. */
async function parse(answer, take) {
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

function sleep(ms) {
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

/** Full waits for nobody: between half and all of a span that doubles, so that clients do not come back in step. */
function backoff(attempt) {
  return Math.min(MAX_BACKOFF_MS, BACKOFF_MS * 2 ** Math.min(attempt, 10)) * (0.5 + Math.random() / 2);
}

function query(parameters) {
  return new URLSearchParams(parameters).toString();
}

/** crypto.randomUUID would need a secure context, which a gateway on a plain http address is not. */
function randomKey() {
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}

function errorEvent(error) {
  const event = new Event("error");
  event.error = error;
  return event;
}
