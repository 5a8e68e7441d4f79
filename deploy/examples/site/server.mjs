// The backend of a page that uses the gateway from another origin. It has the API key, decides who may open a session,
// and returns a client secret to the page that is valid only for that session. No packages.
//
//   GATEWAY=http://127.0.0.1:8080 KEY=… PORT=8000 node server.mjs
//
// The gateway must list this origin: GATEWAY_ACCESS__CORS_ORIGINS='["http://127.0.0.1:8000"]'
import { readFile } from "node:fs/promises";
import { createServer } from "node:http";

const gateway = process.env.GATEWAY ?? "http://127.0.0.1:8080";
const headers = { "Content-Type": "application/json" };
if (process.env.KEY) headers.Authorization = `Bearer ${process.env.KEY}`;

async function openSession() {
  // Your own check of who asks belongs here: a session costs money.
  const body = JSON.stringify({ session: { instructions: "Be brief." }, detach_grace_seconds: 60 });
  const answer = await fetch(`${gateway}/v1/sessions`, { method: "POST", headers, body, signal: AbortSignal.timeout(30_000) });
  const session = await answer.json();
  if (!answer.ok) return [answer.status, { error: session.detail }];
  return [201, {
    gateway,
    id: session.id,
    secret: session.client_secret.value,
    // stream_url is a path of the gateway's. A page of another origin needs the whole address.
    streamUrl: new URL(session.stream_url, gateway).href,
  }];
}

createServer(async (request, response) => {
  const answer = (status, body, type = "application/json") => response.writeHead(status, { "Content-Type": type }).end(body);
  if (request.method === "POST" && request.url === "/session") {
    const [status, body] = await openSession().catch((error) => [502, { error: `${gateway} does not answer: ${error.message}` }]);
    answer(status, JSON.stringify(body));
  } else if (request.method === "GET" && request.url === "/") {
    answer(200, await readFile(new URL("index.html", import.meta.url)), "text/html; charset=utf-8");
  } else {
    answer(404, "{}");
  }
}).listen(Number(process.env.PORT ?? 8000), "127.0.0.1", function listening() {
  console.log(`listening on http://127.0.0.1:${this.address().port}`);
});
