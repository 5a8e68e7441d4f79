// A page's script with OpenAI's Agents SDK over the gateway: bundled, type-checked and run in a browser by a test.
import { RealtimeAgent, RealtimeSession, tool } from "@openai/agents-realtime";
import { RelayTransport } from "realtime-gateway-relay/agents";
import { z } from "zod";

declare global {
  var told: { calls: string[]; text: string; errors: string[]; status: string };
}
globalThis.told = { calls: [], text: "", errors: [], status: "" };

const getWeather = tool({
  name: "get_weather",
  description: "The weather in a city.",
  parameters: z.object({ city: z.string() }),
  execute: async ({ city }) => {
    told.calls.push(city);
    return JSON.stringify({ celsius: 21 });
  },
});

const agent = new RealtimeAgent({ name: "Forecaster", instructions: "Be brief.", tools: [getWeather] });
const gateway = new URLSearchParams(location.hash.slice(1)).get("gateway") ?? location.origin;
const transport = new RelayTransport({ gateway });
const session = new RealtimeSession(agent, { transport, tracingDisabled: true });

session.on("error", ({ error }) => told.errors.push(JSON.stringify(error)));
session.on("history_updated", (history) => {
  const last = history.filter((item) => item.type === "message" && item.role === "assistant").at(-1);
  if (last?.type !== "message" || last.status !== "completed") return;
  told.text = last.content.map((part) => ("text" in part ? part.text : "")).join("");
});
transport.on("connection_change", (status) => { told.status = status; });

await session.connect({ apiKey: "" });
session.sendMessage("What is the weather in Paris?");
document.querySelector("button")!.onclick = () => session.close();
