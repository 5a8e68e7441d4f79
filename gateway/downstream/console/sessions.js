/** The sessions that this tab knows or that the key lists, and a form to join any other. */

import { $, make, makeButton } from "./page.js";
import { RelayError } from "./relay.js";

const STORE = "gateway.sessions";
const CURRENT = "gateway.current";
const REMEMBERED = 20;

export class Sessions {
  #gateway;
  #join;
  #attach;
  #end;
  key = null;

  /** `join(position)`, `attach(callId)` and `end(id, key)` do what the buttons ask for. */
  constructor({ gateway, join, attach, end }) {
    this.#gateway = gateway;
    this.#join = join;
    this.#attach = attach;
    this.#end = end;
    $("join").addEventListener("submit", (event) => {
      event.preventDefault();
      void this.#submit();
    });
  }

  /** The tab's own sessions, with their credentials; never an API key (see `position` in relay.js). */
  get remembered() {
    return JSON.parse(sessionStorage.getItem(STORE) ?? "[]");
  }

  /** The session that a reload returns to, or undefined. */
  get current() {
    const id = sessionStorage.getItem(CURRENT);
    return this.remembered.find((one) => one.id === id);
  }

  remember({ position: { id, key, ticket }, session }) {
    const others = this.remembered.filter((one) => one.id !== id);
    const kept = [{ id, key, ticket, model: session.model }, ...others].slice(0, REMEMBERED);
    sessionStorage.setItem(STORE, JSON.stringify(kept));
    sessionStorage.setItem(CURRENT, id);
  }

  /** Forget which session a reload returns to. */
  leave() {
    sessionStorage.removeItem(CURRENT);
  }

  /** Ask the gateway, and return the JSON of its answer. */
  async call(path, { method = "GET", bearer = this.key } = {}) {
    const headers = bearer ? { Authorization: `Bearer ${bearer}` } : {};
    const answer = await fetch(new URL(path, this.#gateway), { method, headers, cache: "no-store" });
    if (answer.ok) return method === "GET" ? answer.json() : null;
    const problem = await answer.json().catch(() => null);
    throw new RelayError(problem?.code ?? "refused", problem?.detail ?? `The answer was ${answer.status}.`, { status: answer.status });
  }

  /** Show the open sessions. With a key the gateway lists them; otherwise ask for each of the tab's own. */
  async list(here) {
    const own = this.remembered;
    let found = [];
    if (this.key) {
      found = (await this.call("v1/sessions?limit=100").catch(() => ({ data: [] }))).data;
    } else {
      const asked = await Promise.allSettled(own.map(({ id, key }) => this.call(`v1/sessions/${id}`, { bearer: key })));
      found = asked.flatMap((one) => (one.status === "fulfilled" ? [one.value] : []));
      const gone = new Set(own.filter((_, index) => asked[index].reason?.status === 404).map(({ id }) => id));
      if (gone.size) sessionStorage.setItem(STORE, JSON.stringify(this.remembered.filter(({ id }) => !gone.has(id))));
    }
    const open = found.filter(({ state }) => state !== "closed");
    $("session-count").textContent = open.length;
    $("session-empty").hidden = open.length > 0;
    const rows = open.map((session) => this.#row(session, own.find(({ id }) => id === session.id), session.id === here));
    $("session-list").replaceChildren(...rows);
  }

  #row(session, known, isHere) {
    const { id, model, state, created_at: since } = session;
    const about = `${model ?? "no model"} · ${state} · since ${new Date(since * 1000).toLocaleTimeString()}`;
    const bearer = this.key ?? known?.key ?? null;
    const join = makeButton(isHere ? "Here" : "Join", () => this.#join({ id, key: bearer, ticket: known?.ticket }), { label: `${isHere ? "Here" : "Join"} ${id}` });
    join.disabled = isHere;
    const end = makeButton("End", () => this.#end(id, bearer), { label: `End ${id}` });
    return make("li", {}, make("div", {}, make("code", { text: id }), make("small", { text: about })), join, end);
  }

  /** Join the session that was entered. Check first that it exists, so that the form can show what is wrong. */
  async #submit() {
    const id = $("join-id").value.trim();
    const bearer = $("join-key").value.trim() || this.key;
    $("join-error").hidden = true;
    try {
      if (!id) throw new Error("Write the ID of a session, or of a call.");
      if (id.startsWith("rtc_")) {
        this.key = bearer;
        $("join").reset();
        this.#attach(id);
        return;
      }
      await this.call(`v1/sessions/${encodeURIComponent(id)}`, { bearer });
      $("join").reset();
      this.#join({ id, key: bearer });
    } catch (error) {
      $("join-error").textContent = error.message;
      $("join-error").hidden = false;
      $("join-id").focus();
    }
  }
}
