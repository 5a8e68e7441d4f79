// The channel's types as a program uses them; only type-checked.
import { RelayChannel, RelayError, type RelayPosition } from "realtime-gateway-relay";

const channel = new RelayChannel({ gateway: "http://127.0.0.1:8080", session: { instructions: "Be brief." } });
channel.addEventListener("message", (event) => console.log(JSON.parse(event.data).type, event.lastEventId));
channel.addEventListener("gateway.gap", (event) => console.log(JSON.parse(event.data).missed));
channel.onerror = ({ error }) => {
  if (error instanceof RelayError && error.fatal) console.log(error.code, error.status);
};
channel.onopen = () => channel.send(JSON.stringify({ type: "response.create" }));
const position: RelayPosition = channel.position;
new RelayChannel({ position, transports: ["poll"] }).detach();

// @ts-expect-error: no such transport
new RelayChannel({ transports: ["websocket"] });
// @ts-expect-error: a channel sends text or bytes
channel.send({ type: "response.create" });
// It stands in where a data channel is wanted.
const like: Pick<RTCDataChannel, "close" | "readyState" | "bufferedAmount" | "label" | "ordered"> = channel;
like.close();
