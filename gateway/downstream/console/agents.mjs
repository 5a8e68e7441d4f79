/**
 * A transport that lets a `RealtimeSession` of `@openai/agents-realtime` run over the gateway: text, tools, hand-offs.
 *
 *   import { RealtimeAgent, RealtimeSession } from "@openai/agents-realtime";
 *   import { RelayTransport } from "realtime-gateway-relay/agents";
 *   const session = new RealtimeSession(agent, { transport: new RelayTransport({ gateway: url }) });
 *   await session.connect({ apiKey: clientSecret });
 *
 * Knows the SDK's transport interface and the channel. Carries no audio: the SDK's defaults for it are left out.
 */

import { OpenAIRealtimeBase } from "@openai/agents-realtime";
import { RelayChannel } from "./relay.js";

const UPDATED_MS = 5_000;

export class RelayTransport extends OpenAIRealtimeBase {
  #options;
  #channel = null;
  #status = "disconnected";
  #responding = false;
  #asked = null;
  #held = [];

  /** `options` are the SDK's (`model`, `apiKey`) and those of `RelayChannel`. */
  constructor(options = {}) {
    super(options);
    this.#options = options;
  }

  get status() { return this.#status; }
  /** The channel below, for its `position`, its state and the gateway's own events. */
  get channel() { return this.#channel; }
  /** There is no audio to mute. */
  get muted() { return null; }
  mute() {}

  async connect(options) {
    if (this.#channel) return;
    if (options.model) this.currentModel = options.model;
    const { gateway = options.url, key = await this._getApiKey(options), session, ...others } = this.#options;
    const wanted = { ...session, model: this.#options.model ?? options.model };
    const channel = new RelayChannel({ ...others, gateway, key: key || null, session: wanted });
    this.#channel = channel;
    this.#setStatus("connecting");
    channel.addEventListener("message", (event) => this.#take(event));
    channel.addEventListener("gateway.recovered", ({ data }) => this.#recovered(JSON.parse(data)));
    channel.addEventListener("gateway.gap", () => this.#ended());
    channel.addEventListener("error", ({ error }) => this._onError(error));
    channel.addEventListener("close", () => this.#closed(channel));
    await happens(channel, "open");
    const updated = happens(channel, "message", ({ data }) => JSON.parse(data).type === "session.updated", UPDATED_MS);
    this.updateSessionConfig(options.initialSessionConfig ?? {});
    await updated;
    this.#setStatus("connected");
    this._onOpen();
  }

  /** A session of text: no audio is configured, and the model of a call cannot change. */
  updateSessionConfig(config) {
    const { audio, model, ...session } = this.buildSessionPayload({ outputModalities: ["text"], ...config });
    this.sendEvent({ type: "session.update", session: { ...session, output_modalities: ["text"] } });
  }

  /** One response at a time: a request for another waits for the end of the one that runs. */
  sendEvent(event) {
    if (!this.#channel) throw new Error("The transport is not connected");
    if (event.type === "response.create") {
      if (this.#responding) {
        this.#held.push(event);
        return;
      }
      this.#responding = true;
      this.#asked = event.event_id ?? `ask_${crypto.getRandomValues(new Uint32Array(2)).join("_")}`;
      event = { ...event, event_id: this.#asked };
    }
    this.#channel.send(JSON.stringify(event));
  }

  /** Cancel the response that runs. */
  interrupt() {
    if (this.#responding) this.sendEvent({ type: "response.cancel" });
  }

  close() {
    this.#channel?.close();
  }

  #take(event) {
    const { type, error } = JSON.parse(event.data);
    if (type === "response.created") this.#responding = true;
    this._onMessage(event);
    if (type === "response.done" || (type === "error" && error?.event_id && error.event_id === this.#asked)) this.#ended();
  }

  /** A response that was lost with its call has no response.done. */
  #recovered({ response, unknown }) {
    const unasked = response !== "retried" && unknown.some(({ event_id: id }) => id !== null && id === this.#asked);
    if (response === "interrupted" || unasked) this.#ended();
  }

  /** No response runs, or it is not known whether one does: the next one may begin. */
  #ended() {
    this.#responding = false;
    const next = this.#held.shift();
    if (next && this.#channel) this.sendEvent(next);
  }

  #closed(channel) {
    if (this.#channel !== channel) return;
    this.#channel = null;
    this.#responding = false;
    this.#held = [];
    this.#setStatus("disconnected");
    this._onClose();
  }

  #setStatus(status) {
    this.#status = status;
    this.emit("connection_change", status);
  }
}

/** Wait for an event of a channel. Rejects when the channel ends first; a `ms` that runs out resolves all the same. */
function happens(channel, name, counts = () => true, ms = 0) {
  return new Promise((resolve, reject) => {
    let failure = new Error("The channel was closed");
    const done = (settle, value) => {
      clearTimeout(timer);
      channel.removeEventListener(name, look);
      channel.removeEventListener("error", fail);
      channel.removeEventListener("close", end);
      settle(value);
    };
    const look = (event) => counts(event) && done(resolve);
    const fail = ({ error }) => { failure = error; };
    const end = () => done(reject, failure);
    const timer = ms ? setTimeout(() => done(resolve), ms) : undefined;
    channel.addEventListener(name, look);
    channel.addEventListener("error", fail);
    channel.addEventListener("close", end);
  });
}
