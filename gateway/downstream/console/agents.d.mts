import { OpenAIRealtimeBase, type OpenAIRealtimeBaseOptions, type RealtimeTransportLayerConnectOptions } from "@openai/agents-realtime";
import type { RelayChannel, RelayOptions } from "./relay.js";

/** A transport for `RealtimeSession` that uses the gateway. Text only. */
export class RelayTransport extends OpenAIRealtimeBase {
  constructor(options?: OpenAIRealtimeBaseOptions & RelayOptions);
  get status(): "connected" | "disconnected" | "connecting" | "disconnecting";
  get muted(): null;
  /** The channel below, or null while disconnected. */
  readonly channel: RelayChannel | null;
  connect(options: RealtimeTransportLayerConnectOptions): Promise<void>;
  sendEvent(event: { type: string; [member: string]: unknown }): void;
  interrupt(): void;
  mute(muted: boolean): void;
  close(): void;
}
