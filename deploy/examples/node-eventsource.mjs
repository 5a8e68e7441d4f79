// A session in Node with the npm package `eventsource`, which resumes by itself.
//
//   npm install && GATEWAY=http://127.0.0.1:8080 KEY=… node node-eventsource.mjs 'What is 6 times 7?'
import { randomUUID } from "node:crypto";
import { setTimeout as sleep } from "node:timers/promises";
import { EventSource } from "eventsource";

const gateway = process.env.GATEWAY ?? "http://127.0.0.1:8080";
const authorization = process.env.KEY ? { Authorization: `Bearer ${process.env.KEY}` } : {};
const question = process.argv[2] ?? "What is 6 times 7?";

function quit(message) {
  console.error(message);
  process.exit(1);
}

// Sends until it is answered. One key for all tries: the gateway does it once.
async function post(path, body) {
  const headers = { ...authorization, "Content-Type": "application/json", "Idempotency-Key": randomUUID() };
  for (let wait = 500; ; wait *= 2) {
    const init = { method: "POST", headers, body: JSON.stringify(body), signal: AbortSignal.timeout(60_000) };
    const answer = await fetch(gateway + path, init).catch((error) => {
      if (wait > 4000) quit(`${gateway} does not answer: ${error.cause?.message ?? error.message}`);
    });
    if (answer?.ok) return answer.json();
    const pause = 1000 * Number(answer?.headers.get("Retry-After") ?? wait / 1000);
    // A budget of a day asks to wait for hours.
    const isFinal = wait > 4000 || pause > 60_000 || ![409, 429, 502, 503, 504].includes(answer?.status);
    if (answer && isFinal) quit(await answer.text());
    await sleep(pause);
  }
}

const session = await post("/v1/sessions", {});

// The ticket in stream_url is the credential: a standard EventSource can send no headers.
const source = new EventSource(`${gateway}${session.stream_url}`);
const done = new Promise((resolve, reject) => {
  source.addEventListener("message", (event) => {
    const message = JSON.parse(event.data);
    if (message.type === "response.output_text.delta") process.stdout.write(message.delta);
    const failure = message.error ?? message.response?.status_details?.error;
    if (failure) reject(new Error(`OpenAI did not answer: ${JSON.stringify(failure)}`));
    if (message.type === "response.done") resolve();
  });
  source.addEventListener("gateway.gap", (event) => console.error(`${JSON.parse(event.data).missed} events are gone`));
  source.addEventListener("gateway.closed", (event) => reject(new Error(`The session has ended: ${event.data}`)));
});

try {
  await post(session.events_url, [
    { type: "conversation.item.create", item: { type: "message", role: "user", content: [{ type: "input_text", text: question }] } },
    { type: "response.create" },
  ]);
  await done;
  process.stdout.write("\n");
} catch (error) {
  console.error(error.message);
  process.exitCode = 1;
} finally {
  source.close();
  await fetch(`${gateway}/v1/sessions/${session.id}`, { method: "DELETE", headers: authorization }).catch(() => {});
}
