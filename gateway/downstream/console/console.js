/** The console page: puts the conversation, the events, the figures and the sessions together over relay.js. */

import { RelayChannel } from "./relay.js";
import { Composer } from "./composer.js";
import { showCurl } from "./curl.js";
import { EventList } from "./events.js";
import { Figures } from "./figures.js";
import { $, showView } from "./page.js";
import { RawForm, TOOL } from "./raw.js";
import { Sessions } from "./sessions.js";
import { Talk } from "./talk.js";

const TRANSPORTS = { eventsource: "EventSource", stream: "POST stream", poll: "long-poll" };
const OWN_EVENTS = "open gap recovering recovered expiring draining rotating superseded error closed".split(" ");

const gateway = new URL(".", import.meta.url);
const figures = new Figures();
const talk = new Talk({ send, figures, onDone: () => void look() });
const composer = new Composer({
  say(text) {
    if (channel?.readyState !== "open") return false;
    talk.say(text);
    return true;
  },
  cancel: () => talk.cancel(),
  answering: () => talk.answering,
});
const raw = new RawForm({ send });
const events = new EventList({
  list: $("event-list"), empty: $("event-empty"), form: $("filters"), types: $("filter-type"), text: $("filter-text"),
  onEdit: (text) => {
    showView("raw");
    raw.edit(text);
  },
});
const sessions = new Sessions({ gateway, join, attach, end: (id, bearer) => void end(id, bearer) });

let channel = null;
let recovering = false;

// --- starting and ending -----------------------------------------------------------------------------------------------

$("start").addEventListener("submit", (event) => {
  event.preventDefault();
  sessions.key = $("key").value.trim() || null;
  const session = {};
  if ($("model").value.trim()) session.model = $("model").value.trim();
  if ($("instructions").value.trim()) session.instructions = $("instructions").value.trim();
  if ($("with-tool").checked) session.tools = [TOOL];
  curl("Start a session", "v1/sessions", { method: "POST", body: JSON.stringify({ session }) });
  use(new RelayChannel({ gateway, key: sessions.key, session }));
});

/** Read a session from its beginning, so that the page shows all that it has kept. */
function join({ id, key = null, ticket = null }) {
  channel?.detach();
  use(new RelayChannel({ gateway, position: { id, key, ticket } }));
  showView("talk");
}

/** Open a session on a call that a browser or a phone made. */
function attach(callId) {
  channel?.detach();
  show("start");
  curl("Attach to a call", "v1/sessions", { method: "POST", body: JSON.stringify({ call_id: callId }) });
  use(new RelayChannel({ gateway, key: sessions.key, callId }));
  showView("talk");
}

/** Take a channel as the page's own, and show what it says. */
function use(next) {
  channel = next;
  recovering = false;
  events.clear();
  figures.clear();
  $("event-count").textContent = 0;
  $("begin").disabled = true;
  $("start-error").hidden = true;
  showState();
  const on = (name, take) => next.addEventListener(name, (event) => { if (channel === next) take(event); });
  on("open", opened);
  on("close", closed);
  on("error", ({ error }) => failed(error));
  on("connectionchange", showState);
  on("message", ({ data, lastEventId }) => {
    sawEvent("down", data, lastEventId);
    talk.took(JSON.parse(data));
  });
  for (const name of OWN_EVENTS) on(`gateway.${name}`, tookOwn);
}

function opened() {
  sessions.remember(channel);
  talk.clear($("with-tool").checked);
  show("messages", "composer", "end");
  composer.fit();
  $("say").focus({ preventScroll: true });
  $("begin").disabled = false;
  raw.enable(true);
  figures.showSession(channel.session);
  curl("Read its events", `v1/sessions/${channel.sessionId}/events`, { stream: true });
  showState();
  void sessions.list(channel.sessionId);
}

/** The session has ended. Keep the view, and remove only the controls that no longer work. */
function closed() {
  $("begin").disabled = false;
  if (!$("start").hidden) return showState();
  const hadFocus = $("composer").contains(document.activeElement) || document.activeElement === $("end");
  talk.end();
  show("messages", "ended");
  if (hadFocus) $("again").focus({ preventScroll: true });
  raw.enable(false);
  showState();
  void look();
  void sessions.list(channel.sessionId);
}

/** Return to the form. */
$("again").addEventListener("click", () => {
  channel = null;
  sessions.leave();
  show("start");
  $("instructions").focus();
  figures.clear();
  showState();
});

function failed(error) {
  if ($("start").hidden) {
    talk.note(error.message, "bad");
    $("ended-why").textContent ||= error.message;
    return;
  }
  const refused = error.status === 401;
  // After a reload the session may be gone. Show the form without an error then.
  const silent = error.status === 404 && sessions.current;
  sessions.leave();
  $("key-field").hidden &&= !refused;
  $("start-error").textContent = refused && !sessions.key ? "This gateway asks for a key." : error.message;
  $("start-error").hidden = Boolean(silent);
  channel = null;
  $("begin").disabled = false;
  if (refused) $("key").focus();
  showState();
}

$("end").addEventListener("click", () => {
  curl("End the session", `v1/sessions/${channel.sessionId}`, { method: "DELETE" });
  void end(channel.sessionId, channel.position.key);
});

/** End a session, this page's or another's. */
async function end(id, bearer) {
  try {
    await sessions.call(`v1/sessions/${id}`, { method: "DELETE", bearer });
  } catch (error) {
    talk.note(error.message, "bad");
  }
  void sessions.list(channel?.sessionId);
}

/** Show these parts of the conversation and hide the others. */
function show(...ids) {
  for (const id of ["start", "messages", "composer", "ended", "end"]) $(id).hidden = !ids.includes(id);
  if (ids.includes("composer")) $("ended-why").textContent = "";
}

// --- the session's state -----------------------------------------------------------------------------------------------

function showState() {
  const transport = TRANSPORTS[channel?.transport];
  const [state, text] =
    channel === null ? ["idle", "No session"]
    : channel.readyState === "connecting" ? ["waiting", "Connecting…"]
    : channel.readyState === "closed" ? ["closed", "Session ended"]
    : recovering ? ["waiting", "New call upstream…"]
    : channel.connected ? ["connected", `Connected · ${transport}`]
    : ["waiting", navigator.onLine ? `Reconnecting · ${transport}` : "Offline · nothing is lost"];
  if (channel?.readyState === "connecting" && channel.lastError && !$("start").hidden) {
    $("start-error").textContent = `${channel.lastError.message} Trying again…`;
    $("start-error").hidden = false;
  }
  $("state").dataset.state = state;
  $("state-text").textContent = text;
}
for (const name of ["online", "offline"]) addEventListener(name, showState);

/** Ask what the session has cost, and what its call does. */
async function look() {
  const asked = channel;
  if (!asked?.sessionId) return;
  const { id, key } = asked.position;
  try {
    const session = await sessions.call(`v1/sessions/${id}`, { bearer: key });
    if (channel === asked) figures.showSession(session, recovering);
  } catch {
    // Cut off, or gone: the state says so.
  }
}

function tookOwn({ type, data, lastEventId }) {
  sawEvent("down", data, lastEventId);
  const told = JSON.parse(data);
  if (type === "gateway.recovering" || type === "gateway.recovered") {
    recovering = type === "gateway.recovering";
    void look();
  }
  if (type === "gateway.gap") {
    talk.note(`${told.missed ?? "Some"} events were lost: ${told.reason}.`, "bad");
    talk.lost();
  }
  if (type === "gateway.recovered") {
    talk.note(told.response === "interrupted"
      ? "The call was replaced, and its answer was cut off. Ask again."
      : "The call was replaced; the conversation continues.");
    const isUnasked = told.response === null && told.unknown.some((event) => event.type === "response.create");
    if (told.response === "interrupted" || isUnasked) talk.lost();
  }
  if (type === "gateway.draining") talk.note("The gateway is being shut down and will end this session soon.");
  if (type === "gateway.closed") {
    $("ended-why").textContent = told.reason === "client" ? "It was closed by a client." : `Reason: ${told.reason}.`;
  }
  showState();
}

// --- sending -----------------------------------------------------------------------------------------------------------

function send(batch) {
  if (channel?.readyState !== "open") return;
  for (const event of batch) {
    const text = JSON.stringify(event);
    channel.send(text);
    sawEvent("up", text);
  }
  const body = JSON.stringify(batch.length === 1 ? batch[0] : batch);
  curl(batch.map(({ type }) => type).join(", "), `v1/sessions/${channel.sessionId}/events`, { method: "POST", body });
}

function curl(title, path, options) {
  showCurl(title, new URL(path, gateway).href, { ...options, keyed: sessions.key !== null });
}

function sawEvent(way, text, id) {
  events.add(way, text, id);
  $("event-count").textContent = events.total;
}

for (const button of document.querySelectorAll(".views button")) {
  button.addEventListener("click", () => {
    showView(button.dataset.show);
    if (button.dataset.show === "sessions") void sessions.list(channel?.sessionId);
    if (button.dataset.show === "talk") talk.toEnd();
  });
}

figures.clear();
if (sessions.current) join(sessions.current);
else void sessions.list();
