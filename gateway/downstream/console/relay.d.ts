/** The ways to read, best first: `EventSource`, a streamed `POST`, long-polls. */
export type Transport = "eventsource" | "stream" | "poll";

/** What another channel needs to continue from here. Has the client secret instead of the API key, if there is one. */
export interface RelayPosition {
  id: string | null;
  key?: string | null;
  ticket?: string | null;
  /** The ID of the last event that was read. */
  after?: string;
}

/** The gateway's session object; see docs/api.md. */
export interface RelaySession {
  id: string;
  state: "connecting" | "connected" | "recovering" | "closed";
  model: string | null;
  call_id: string | null;
  head: string;
  metadata: Record<string, unknown>;
  limits: Record<string, number>;
  [member: string]: unknown;
}

export interface RelayOptions {
  /** The gateway's URL. Default: where this module came from. */
  gateway?: string | URL;
  /** An API key, or a session's client secret (`gwk_…`). Sent in a header, never in a URL. */
  key?: string | null;
  /** The caller's own `ek_…`, where the gateway is configured to pass it on. */
  upstreamKey?: string;
  /** OpenAI's session object for a new session. */
  session?: Record<string, unknown>;
  /** Attach the new session to this call (`rtc_…`), which a browser or a phone made; without `session`. */
  callId?: string;
  metadata?: Record<string, unknown>;
  detachGraceSeconds?: number;
  /** Join this session instead of opening one. */
  position?: Partial<RelayPosition>;
  /** A ticket's URL (`stream_url`): join its session, read only. */
  streamUrl?: string | URL;
  /** Where to begin: an event's ID, `"earliest"` (default) or `"now"`. */
  after?: string;
  /** Default `"oai-events"`. */
  label?: string;
  transports?: Transport[];
  /** How long a stream may be silent at its beginning before it counts as held back by a proxy. Default 10. */
  muteSeconds?: number;
  /** 5 to 60, requested from the gateway. A stream that is silent for 2.5 heartbeats is cut. */
  heartbeatSeconds?: number;
  /** Used instead of the global ones. Without any `EventSource` reading begins with `"stream"`. */
  EventSource?: new (url: URL | string) => unknown;
  fetch?: typeof fetch;
}

export class RelayError extends Error {
  /** The gateway's error code, or `"network"`. */
  readonly code: string;
  /** 0 without an answer. */
  readonly status: number;
  /** The RFC 9457 object, or null. */
  readonly problem: Record<string, unknown> | null;
  /** Whether the channel ends with this error. */
  readonly fatal: boolean;
  /** The texts that the gateway refused. */
  readonly dropped: string[];
  get retryable(): boolean;
}

export interface RelayErrorEvent extends Event {
  readonly error: RelayError;
}

/** The gateway's own events, with JSON text in `data`. */
export type GatewayEventName =
  | "gateway.open" | "gateway.gap" | "gateway.ping" | "gateway.rotating" | "gateway.superseded" | "gateway.error"
  | "gateway.recovering" | "gateway.recovered" | "gateway.expiring" | "gateway.draining" | "gateway.closed";

export type RelayEventMap = {
  open: Event;
  message: MessageEvent<string>;
  closing: Event;
  close: Event;
  error: RelayErrorEvent;
  bufferedamountlow: Event;
  /** `transport`, `connected` or, while connecting, `lastError` has changed. */
  connectionchange: Event;
} & Record<GatewayEventName, MessageEvent<string>>;

/** An object that looks like an `RTCDataChannel`, over HTTP. */
export class RelayChannel extends EventTarget {
  constructor(options?: RelayOptions);

  readonly readyState: "connecting" | "open" | "closing" | "closed";
  readonly bufferedAmount: number;
  bufferedAmountLowThreshold: number;
  readonly label: string;
  readonly ordered: boolean;

  readonly sessionId: string | null;
  /** The object that the gateway returned, null until the channel is open. */
  readonly session: RelaySession | null;
  readonly transport: Transport;
  /** False while cut off. */
  readonly connected: boolean;
  /** Why the newest request has to be repeated, null after one that succeeded. */
  readonly lastError: RelayError | null;
  readonly readOnly: boolean;
  readonly position: RelayPosition;

  /**
   * Send one client event as JSON text. Throws `InvalidStateError` unless `readyState` is `"open"`, `OperationError` beyond
   * 16 MiB of unsent events, and `NotAllowedError` on a read-only channel.
   */
  send(data: string | BufferSource): void;
  /** Deliver what was sent, then end the channel, and the session if this channel opened it. */
  close(): void;
  /** End the channel and leave the session. */
  detach(): void;

  onopen: ((event: Event) => unknown) | null;
  onmessage: ((event: MessageEvent<string>) => unknown) | null;
  onclosing: ((event: Event) => unknown) | null;
  onclose: ((event: Event) => unknown) | null;
  onerror: ((event: RelayErrorEvent) => unknown) | null;
  onbufferedamountlow: ((event: Event) => unknown) | null;

  addEventListener<Name extends keyof RelayEventMap>(
    name: Name, listener: (this: RelayChannel, event: RelayEventMap[Name]) => unknown, options?: boolean | AddEventListenerOptions,
  ): void;
  addEventListener(
    name: string, listener: EventListenerOrEventListenerObject | null, options?: boolean | AddEventListenerOptions,
  ): void;
}
