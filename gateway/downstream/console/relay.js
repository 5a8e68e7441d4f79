/**
 * A data channel over HTTP: an object that looks like an `RTCDataChannel` to OpenAI's Realtime API, made of POSTs up and
 * an event stream down. No dependencies, no build. Knows the gateway's API and nothing of what events mean.
 *
 *   import { RelayChannel } from "/relay.js";
 *   const dataChannel = new RelayChannel({ session: { instructions: "Be brief." } });
 *   dataChannel.addEventListener("message", (event) => console.log(JSON.parse(event.data).type));
 *   dataChannel.onopen = () => dataChannel.send(JSON.stringify({ type: "response.create" }));
 *
 * A cut connection does not close the channel: it continues where it was, and then sends the queued events. Every
 * option, member and event is described in relay.d.ts and docs/javascript.md.
 */

import { backoff, errorEvent, httpOf, parse, query, randomKey, RelayError, REQUEST_MS, sleep } from "./relay-http.js";
import { Outbox } from "./relay-outbox.js";

export { RelayError };

const OWN_EVENTS = "open gap ping rotating superseded error recovering recovered expiring draining closed"
  .split(" ").map((name) => `gateway.${name}`);

// Used until the session object says the gateway's own.
const LIMITS = { max_batch_events: 256, max_body_bytes: 1048576, heartbeat_seconds: 15 };
// Three streams in a row that end before this count as cut by a proxy.
const HEALTHY_MS = 20_000;
const STRIKES = 3;
const SILENT_HEARTBEATS = 2.5;
const [OPEN_MS, LAST_WORDS_MS, LONGEST_WAIT_MS] = [60_000, 5_000, 60_000];
const POLL_SECONDS = 25;
const ROTATION_PAUSE_MS = 500;

export class RelayChannel extends EventTarget {
  #options;
  #http;
  #outbox;
  #owned = false;
  #cursor;
  #state = "connecting";
  #entering;
  #transports;
  #level = 0;
  #connected = false;
  #lastError = null;
  #heartbeat;
  #limits = LIMITS;
  #cut = () => {};
  #resting = new Set();
  #handlers = new Map();

  constructor(options = {}) {
    super();
    const position = options.position ?? {};
    this.#options = options;
    this.#http = httpOf(options, position);
    this.#outbox = new Outbox({
      post: (body, headers) => this.#untilAnswered(() => this.#http.json("/events", { method: "POST", body, headers })),
      limits: () => this.#limits,
      isOver: () => this.#over,
      onRefused: (error) => this.#tell(errorEvent(error)),
      onDrained: (before, now) => {
        const threshold = this.bufferedAmountLowThreshold;
        if (before > threshold && now <= threshold) this.#tell(new Event("bufferedamountlow"));
      },
    });
    this.#cursor = position.after ?? options.after ?? "earliest";
    this.#heartbeat = options.heartbeatSeconds ?? LIMITS.heartbeat_seconds;
    this.label = options.label ?? "oai-events";
    this.ordered = true;
    this.bufferedAmountLowThreshold = 0;
    this.session = null;
    const wanted = options.transports ?? ["eventsource", "stream", "poll"];
    this.#transports = wanted.filter((one) => one !== "eventsource" || this.#EventSource);
    if (!this.#transports.length) this.#transports = ["poll"];
    globalThis.addEventListener?.("online", this.#backOnline);
    globalThis.addEventListener?.("offline", this.#wentOffline);
    this.#run();
  }

  get readyState() { return this.#state; }
  get bufferedAmount() { return this.#outbox.bufferedAmount; }
  get sessionId() { return this.#http.sessionId; }
  get readOnly() { return this.#http.readOnly; }
  get transport() { return this.#transports[this.#level]; }
  get connected() { return this.#connected; }
  /** Why the newest request has to be repeated, null after one that succeeded. */
  get lastError() { return this.#lastError; }
  /** What another channel needs to continue. Has the client secret instead of the API key, if there is one: safe to store. */
  get position() {
    const { key: own, ticket, sessionId: id } = this.#http;
    const key = own && (this.session?.client_secret?.value ?? own);
    return { id, key, ticket, after: this.#cursor };
  }

  get #EventSource() { return this.#options.EventSource ?? globalThis.EventSource; }

  send(data) {
    if (this.#state !== "open") throw new DOMException(`The channel is ${this.#state}`, "InvalidStateError");
    if (this.readOnly) throw new DOMException("A ticket only reads", "NotAllowedError");
    this.#outbox.add(typeof data === "string" ? data : new TextDecoder().decode(data));
  }

  /** Deliver what was sent, then end the channel, and the session too if this channel opened it. */
  close() {
    this.#leave(true);
  }

  /** End the channel and leave the session open. Another channel continues at `position`. */
  detach() {
    this.#leave(false);
  }

  async #leave(endSession) {
    if (this.#state === "closing" || this.#state === "closed") return;
    this.#state = "closing";
    this.#tell(new Event("closing"));
    const patience = sleep(LAST_WORDS_MS);
    // Wait for a session that is being opened: only this channel will know its ID and can end it.
    await Promise.race([this.#outbox.sending ?? this.#entering, patience.done]);
    patience.wake();
    if (endSession && this.#owned) {
      await this.#http.fetch("", { method: "DELETE", patience: LAST_WORDS_MS }).catch(() => {});
    }
    this.#end();
  }

  // --- opening ------------------------------------------------------------------------------------------------------

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
    const { session, callId, metadata, detachGraceSeconds } = this.#options;
    const body = JSON.stringify({ session, call_id: callId, metadata, detach_grace_seconds: detachGraceSeconds });
    const headers = { "Idempotency-Key": randomKey() };
    const deadline = Date.now() + OPEN_MS;
    this.session = await this.#untilAnswered(
      () => this.#http.json("", { method: "POST", body, headers, patience: OPEN_MS }, "v1/sessions"), deadline);
    this.#http.sessionId = this.session.id;
    this.#owned = true;
    this.#http.ticket = new URL(this.session.stream_url, this.#http.base).searchParams.get("ticket");
  }

  async #join() {
    this.session = await this.#untilAnswered(() => this.#http.json(""));
    if (this.#http.ticket || !this.#transports.includes("eventsource")) return;
    this.#http.ticket = (await this.#untilAnswered(() => this.#http.json("/tickets", { method: "POST" }))).ticket;
  }

  // --- down ---------------------------------------------------------------------------------------------------------

  /**
   * Read until the channel ends. When a stream ends without `gateway.rotating` or `gateway.closed`, either the network failed
   * or a proxy cuts streams. A short request shows which, and returns the events that were missed.
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
        await this.#pause(Math.random() * ROTATION_PAUSE_MS);
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
        // A long-poll was just answered, so it works. Whether the next kind of stream does is not known yet.
        this.#setConnection(this.#level + 1, this.#transports[this.#level + 1] === "poll");
      } else if (strikes) {
        await this.#pause(backoff(strikes - 1));
      }
    }
  }

  #readEventSource() {
    return new Promise((resolve) => {
      const source = new this.#EventSource(this.#http.url("/events", { ticket: this.#http.ticket, ...this.#wanted() }));
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
      const answer = await this.#http.fetch(
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

  /** Watch one stream: end it after silence. `done` is called once, with why and after how long it ended. */
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
      page = await this.#http.json(
        `/events?${query({ format: "json", wait, after: this.#cursor, ...this.#http.ticketIfNeeded })}`,
        { patience: REQUEST_MS + wait * 1000 });
    } catch (error) {
      if (error.code !== "cursor-expired") throw error;
      // A stream reports the gap together with the events after it, so nothing is lost between the two.
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
    const answer = await this.#http.fetch(
      "/events/stream", { method: "POST", body, accept: "text/event-stream", patience: 2 * REQUEST_MS });
    await parse(answer, (...event) => this.#take(...event));
  }

  /** Dispatch one event and move the cursor past it. Return its name. */
  #take(name, data, id) {
    if (this.#over) return name;
    if (id) this.#cursor = id;
    const own = name === "message" ? null : JSON.parse(data);
    if (name === "gateway.open") this.#heartbeat = own.heartbeat_seconds ?? this.#heartbeat;
    this.#tell(new MessageEvent(name, { data, lastEventId: id ?? "", origin: this.#http.base.origin }));
    if (name === "gateway.closed") this.#end();
    if (name === "gateway.superseded") {
      this.#fail(new RelayError("superseded", "Too many readers: the gateway let this one go."));
    }
    return name;
  }

  // --- requests -----------------------------------------------------------------------------------------------------

  /** Repeat a request until it succeeds or fails for good. Return its answer. */
  async #untilAnswered(request, deadline = Infinity) {
    for (let attempt = 0; ; attempt += 1) {
      try {
        const answer = await request();
        this.#lastError = null;
        return answer;
      } catch (error) {
        const wanted = (error.problem?.retry_after ?? 0) * 1000;
        if (this.#over || !error.retryable || wanted > LONGEST_WAIT_MS || Date.now() + wanted > deadline) throw error;
        this.#lastError = error;
        if (error.status === 0 && this.#state !== "connecting") this.#setConnection(this.#level, false);
        if (this.#state === "connecting") this.#tell(new Event("connectionchange"));
        await this.#pause(wanted + backoff(attempt));
        if (this.#over) throw error;
      }
    }
  }

  // --- state --------------------------------------------------------------------------------------------------------

  get #over() { return this.#state === "closed"; }

  /** The network is back, and may be another one: try everything again at once, beginning with the best transport. */
  #backOnline = () => {
    this.#level = 0;
    for (const wake of this.#resting) wake();
    this.#cut("restarted");
  };

  /** Do not wait for missing heartbeats. A gateway on this machine is reached again at once. */
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
    this.#http.abort();
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
