/** The console page: a conversation over the browser client, with everything that passes in sight. */

import { RelayChannel, RelayError } from "./relay.js";
import { curlLine } from "./curl.js";
import { EventList } from "./events.js";
import { drawBars, drawLine } from "./plots.js";

const HINTS = ["What can you do?", "Count to thirty.", "Tell me a joke."];
const TRANSPORTS = { eventsource: "EventSource", stream: "POST stream", poll: "long-poll" };
const CURL_LINES = 50;
const PARTS_OF_TEXT = new Set(["response.output_text.delta", "response.text.delta", "response.output_audio_transcript.delta"]);
const STORE = "gateway.sessions";

const $ = (id) => document.getElementById(id);
const gateway = new URL(".", import.meta.url);
const events = new EventList({
  list: $("event-list"), empty: $("event-empty"), form: $("filters"), types: $("filter-type"), text: $("filter-text"),
});

let channel = null;
let key = null;
let talk = newTalk();

/** What one session's conversation consists of, besides what the page shows. */
function newTalk() {
  return { active: null, waiting: 0, askedAt: null, answers: new Map(), deltas: [], tokens: [], total: { in: 0, out: 0, audio: 0 } };
}

// --- starting and ending -----------------------------------------------------------------------------------------------

$("start").addEventListener("submit", (event) => {
  event.preventDefault();
  key = $("key").value.trim() || null;
  const session = {};
  if ($("model").value.trim()) session.model = $("model").value.trim();
  if ($("instructions").value.trim()) session.instructions = $("instructions").value.trim();
  const body = JSON.stringify({ session });
  showCurl("Start a session", "v1/sessions", { method: "POST", body });
  use(new RelayChannel({ gateway, key, session }));
});

/** Take a channel as the page's own, and show what it says. */
function use(next) {
  channel = next;
  talk = newTalk();
  events.clear();
  drawFigures();
  $("begin").disabled = true;
  $("start-error").hidden = true;
  showState();
  next.addEventListener("open", () => { if (channel === next) opened(); });
  next.addEventListener("close", () => { if (channel === next) closed(); });
  next.addEventListener("error", (event) => { if (channel === next) failed(event.error); });
  next.addEventListener("connectionchange", () => { if (channel === next) showState(); });
  next.addEventListener("message", (event) => { if (channel === next) took(event); });
  for (const name of "open gap recovering recovered expiring draining rotating superseded error closed".split(" ")) {
    next.addEventListener(`gateway.${name}`, (event) => { if (channel === next) tookOwn(event); });
  }
}

function opened() {
  remember(channel);
  $("start").hidden = true;
  $("begin").disabled = false;
  $("messages").replaceChildren(hint());
  for (const id of ["messages", "composer", "end"]) $(id).hidden = false;
  $("say").disabled = false;
  $("say").focus();
  showCurl("Read its events", `v1/sessions/${channel.sessionId}/events`, { stream: true });
  showState();
  void listSessions();
}

function closed() {
  $("begin").disabled = false;
  $("end").textContent = "New session";
  $("say").disabled = true;
  settle();
  showState();
  void listSessions();
}

function failed(error) {
  if (!$("start").hidden) {
    const refused = error.status === 401;
    $("key-field").hidden &&= !refused;
    $("start-error").textContent = refused && !key ? "This gateway asks for a key." : error.message;
    $("start-error").hidden = false;
    channel = null;
    $("begin").disabled = false;
    if (refused) $("key").focus();
    showState();
    return;
  }
  note(error.message, "bad");
}

$("end").addEventListener("click", () => {
  if (channel?.readyState === "open") {
    showCurl("End the session", `v1/sessions/${channel.sessionId}`, { method: "DELETE" });
    channel.close();
    return;
  }
  channel = null;
  for (const id of ["messages", "composer", "end"]) $(id).hidden = true;
  $("end").textContent = "End session";
  $("start").hidden = false;
  showState();
  $("instructions").focus();
});

function showState() {
  const transport = TRANSPORTS[channel?.transport];
  const [state, text] =
    channel === null ? ["idle", "No session"]
    : channel.readyState === "connecting" ? ["waiting", "Connecting…"]
    : channel.readyState === "closed" ? ["closed", "Session ended"]
    : channel.readyState === "closing" ? ["waiting", "Ending…"]
    : talk.recovering ? ["waiting", "New call upstream…"]
    : channel.connected ? ["connected", `Connected · ${transport}`]
    : ["waiting", navigator.onLine ? `Reconnecting · ${transport}` : "Offline · nothing is lost"];
  $("state").dataset.state = state;
  $("state-text").textContent = text;
}
for (const name of ["online", "offline"]) addEventListener(name, showState);

// --- talking -----------------------------------------------------------------------------------------------------------

$("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  const text = $("say").value.trim();
  if (!text || channel?.readyState !== "open") return;
  $("say").value = "";
  fit();
  say(text);
});

$("say").addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  $("composer").requestSubmit();
});
$("say").addEventListener("input", fit);
$("cancel").addEventListener("click", cancel);
addEventListener("keydown", (event) => {
  if (event.key === "Escape" && talk.active && !event.isComposing) cancel();
});

function say(text) {
  $("messages").querySelector(".hint")?.remove();
  message("user", text);
  const item = { type: "message", role: "user", content: [{ type: "input_text", text }] };
  const batch = [{ type: "conversation.item.create", item }];
  // One response at a time: what is said meanwhile is answered after it.
  if (talk.active || talk.askedAt !== null) talk.waiting += 1;
  else batch.push(ask());
  send(batch);
}

function ask() {
  talk.askedAt = performance.now();
  $("cancel").hidden = false;
  return { type: "response.create" };
}

function cancel() {
  if (channel?.readyState === "open" && talk.active) send([{ type: "response.cancel" }]);
}

function send(batch) {
  for (const event of batch) {
    const text = JSON.stringify(event);
    channel.send(text);
    sawEvent("up", text);
  }
  const body = batch.length === 1 ? JSON.stringify(batch[0]) : JSON.stringify(batch);
  showCurl(batch.map(({ type }) => type).join(", "), `v1/sessions/${channel.sessionId}/events`, { method: "POST", body });
}

function took({ data }) {
  sawEvent("down", data);
  const event = JSON.parse(data);
  if (PARTS_OF_TEXT.has(event.type)) return tookDelta(event);
  if (event.type === "response.created") {
    talk.active = event.response.id;
    $("cancel").hidden = false;
  } else if (event.type === "response.done") {
    tookDone(event.response);
  } else if (event.type === "conversation.item.added" || event.type === "conversation.item.created") {
    tookItem(event.item);
  } else if (event.type === "error") {
    note(event.error?.message ?? "The service refused an event.", "bad");
    if (!talk.active) settle();
  }
}

function tookDelta({ response_id: id, delta }) {
  if (talk.askedAt !== null && !talk.answers.has(id)) {
    talk.deltas.push(performance.now() - talk.askedAt);
    talk.askedAt = null;
    drawFigures();
  }
  let answer = talk.answers.get(id);
  if (!answer) {
    answer = message("assistant", "");
    answer.classList.add("open");
    talk.answers.set(id, answer);
  }
  const follows = atEnd();
  const { firstElementChild: line } = answer;
  if (line.lastChild) line.lastChild.appendData(delta);
  else line.append(delta);
  if (follows) toEnd();
}

function tookDone(response) {
  const answer = talk.answers.get(response.id);
  if (answer) {
    answer.classList.remove("open");
    $("announce").textContent = answer.textContent;
  }
  if (response.status !== "completed") {
    const detail = response.status_details?.error?.message ?? response.status_details?.reason;
    note(response.status === "cancelled" ? "Stopped" : `${response.status}: ${detail ?? "no reason given"}`,
      response.status === "failed" ? "bad" : "");
  }
  tookUsage(response.usage);
  settle();
  if (talk.waiting && channel.readyState === "open") {
    talk.waiting = 0;
    send([ask()]);
  }
}

/** What another client of this session, or this page before a reload, has said. */
function tookItem(item) {
  if (item?.role !== "user" || talk.askedAt !== null || talk.active) return;
  const text = item.content?.map((part) => part.text ?? "").join("");
  if (!text) return;
  $("messages").querySelector(".hint")?.remove();
  message("user", text);
}

function tookUsage(usage) {
  if (!usage) return;
  const { input_tokens: below = 0, output_tokens: above = 0 } = usage;
  talk.tokens.push([below, above]);
  talk.total.in += below;
  talk.total.out += above;
  talk.total.audio += (usage.input_token_details?.audio_tokens ?? 0) + (usage.output_token_details?.audio_tokens ?? 0);
  drawFigures();
}

function settle() {
  talk.active = null;
  talk.askedAt = null;
  $("cancel").hidden = true;
  for (const answer of talk.answers.values()) answer.classList.remove("open");
}

function tookOwn({ type, data }) {
  sawEvent("down", data);
  const told = JSON.parse(data);
  if (type === "gateway.recovering" || type === "gateway.recovered") talk.recovering = type === "gateway.recovering";
  if (type === "gateway.gap") note(`${told.missed ?? "Some"} events were lost: ${told.reason}.`, "bad");
  if (type === "gateway.recovered") note("The call was replaced; the conversation goes on.");
  if (type === "gateway.draining") note("The gateway is being shut down and will end this session soon.");
  if (type === "gateway.closed") note(told.reason === "client" ? "Session ended" : `Session ended: ${told.reason}`);
  showState();
}

// --- what is shown -----------------------------------------------------------------------------------------------------

function message(role, text) {
  const item = document.createElement("li");
  item.className = role;
  const line = document.createElement("p");
  if (text) line.append(text);
  item.append(line);
  $("messages").append(item);
  toEnd();
  return item;
}

function note(text, kind = "") {
  const item = message("note", text);
  if (kind) item.classList.add(kind);
}

function hint() {
  const item = document.createElement("li");
  item.className = "hint";
  const line = document.createElement("p");
  line.append("Connected. Say something, or try one of these:");
  const tries = HINTS.map((text) => {
    const button = document.createElement("button");
    button.type = "button";
    button.className = "quiet";
    button.append(text);
    button.addEventListener("click", () => {
      say(text);
      $("say").focus();
    });
    return button;
  });
  item.append(line, ...tries);
  return item;
}

function atEnd() {
  const list = $("messages");
  return list.scrollHeight - list.scrollTop - list.clientHeight < 60;
}

function toEnd() {
  $("messages").scrollTop = $("messages").scrollHeight;
}

function fit() {
  const field = $("say");
  field.style.height = "auto";
  field.style.height = `${field.scrollHeight + 2}px`;
}

function sawEvent(way, text) {
  events.add(way, text);
  $("event-count").textContent = events.total;
}

function drawFigures() {
  const { deltas, tokens, total } = talk;
  $("delta-now").textContent = deltas.length ? milliseconds(deltas.at(-1)) : "–";
  $("delta-note").textContent = deltas.length ? `median ${milliseconds(median(deltas))}` : "no answer yet";
  drawLine($("delta-plot"), deltas);
  $("tokens-now").textContent = (total.in + total.out).toLocaleString("en");
  $("tokens-note").textContent = `in ${total.in} · out ${total.out} · audio ${total.audio}`;
  $("tokens-plot").closest(".figure").classList.toggle("alarm", total.audio > 0);
  drawBars($("tokens-plot"), tokens);
}

function milliseconds(value) {
  return value < 1000 ? `${Math.round(value)} ms` : `${(value / 1000).toFixed(1)} s`;
}

function median(values) {
  const sorted = [...values].sort((one, other) => one - other);
  return sorted[Math.floor(sorted.length / 2)];
}

function showCurl(title, path, options) {
  const line = curlLine(new URL(path, gateway).href, { ...options, keyed: key !== null });
  const item = document.createElement("li");
  const heading = document.createElement("h3");
  heading.append(title);
  const block = document.createElement("pre");
  block.append(line);
  const copy = document.createElement("button");
  copy.type = "button";
  copy.className = "quiet";
  copy.append("Copy");
  copy.setAttribute("aria-label", `Copy: ${title}`);
  copy.addEventListener("click", () => void copyLine(copy, block, line));
  item.append(heading, copy, block);
  $("curl-list").prepend(item);
  while ($("curl-list").childElementCount > CURL_LINES) $("curl-list").lastElementChild.remove();
  $("curl-empty").hidden = true;
}

async function copyLine(button, block, line) {
  try {
    await navigator.clipboard.writeText(line);
    button.textContent = "Copied";
    setTimeout(() => { button.textContent = "Copy"; }, 1500);
  } catch {
    // No clipboard without a secure context: what is selected can be copied by hand.
    getSelection().selectAllChildren(block);
  }
}

for (const button of document.querySelectorAll(".views button")) {
  button.addEventListener("click", () => {
    document.body.dataset.view = button.dataset.show;
    for (const other of document.querySelectorAll(".views button")) {
      other.setAttribute("aria-pressed", String(other === button));
    }
    if (button.dataset.show === "sessions") void listSessions();
    if (button.dataset.show === "talk") toEnd();
  });
}

// --- sessions ----------------------------------------------------------------------------------------------------------

/** The tab's own sessions, with what reading and closing them takes; never an API key (see `position`). */
function remembered() {
  try {
    return JSON.parse(sessionStorage.getItem(STORE)) ?? [];
  } catch {
    return [];
  }
}

function remember({ position, session }) {
  const others = remembered().filter(({ id }) => id !== position.id);
  const { id, key, ticket } = position;
  sessionStorage.setItem(STORE, JSON.stringify([{ id, key, ticket, model: session.model }, ...others].slice(0, 20)));
}

async function call(path, method = "GET", bearer = key) {
  const headers = bearer ? { Authorization: `Bearer ${bearer}` } : {};
  const answer = await fetch(new URL(path, gateway), { method, headers, cache: "no-store" });
  if (!answer.ok) throw new RelayError("refused", `The answer was ${answer.status}.`, { status: answer.status });
  return method === "GET" ? answer.json() : null;
}

/** With a key the gateway lists its sessions; without one it does not, and the tab's own are asked for one by one. */
async function listSessions() {
  const own = remembered();
  let found = [];
  if (key) {
    found = (await call("v1/sessions").catch(() => ({ data: [] }))).data;
  } else {
    const asked = await Promise.allSettled(own.map(({ id, key: bearer }) => call(`v1/sessions/${id}`, "GET", bearer)));
    found = asked.flatMap((one) => (one.status === "fulfilled" ? [one.value] : []));
    const gone = new Set(own.filter((_, index) => asked[index].reason?.status === 404).map(({ id }) => id));
    if (gone.size) sessionStorage.setItem(STORE, JSON.stringify(own.filter(({ id }) => !gone.has(id))));
  }
  const open = found.filter(({ state }) => state !== "closed");
  $("session-count").textContent = open.length;
  $("session-empty").hidden = open.length > 0;
  $("session-list").replaceChildren(...open.map((session) => sessionRow(session, own.find(({ id }) => id === session.id))));
}

function sessionRow(session, known) {
  const item = document.createElement("li");
  const name = document.createElement("div");
  const id = document.createElement("code");
  id.append(session.id);
  const about = document.createElement("small");
  const current = session.id === channel?.sessionId && channel.readyState === "open";
  about.append(`${session.model} · ${session.state} · since ${new Date(session.created_at * 1000).toLocaleTimeString()}`);
  name.append(id, about);
  const join = rowButton(current ? "Here" : "Join", session.id, () => {
    channel?.detach();
    use(new RelayChannel({ gateway, position: { id: session.id, key: key ?? known?.key, ticket: known?.ticket } }));
    document.querySelector('[data-show="talk"]').click();
  });
  join.disabled = current;
  const end = rowButton("End", session.id, () => {
    showCurl("End the session", `v1/sessions/${session.id}`, { method: "DELETE" });
    void call(`v1/sessions/${session.id}`, "DELETE", key ?? known?.key).catch(() => {}).finally(listSessions);
  });
  item.append(name, join, end);
  return item;
}

function rowButton(text, id, act) {
  const button = document.createElement("button");
  button.type = "button";
  button.className = "quiet";
  button.append(text);
  button.setAttribute("aria-label", `${text} ${id}`);
  button.addEventListener("click", act);
  return button;
}

drawFigures();
void listSessions();
