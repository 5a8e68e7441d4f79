/** The conversation: messages, answers, tool calls. Requests one response at a time. */

import { $, make, makeButton } from "./page.js";

const HINTS = ["What can you do?", "Count to thirty.", "Tell me a joke."];
const TOOL_HINT = "What is the weather in Paris?";
const PARTS_OF_TEXT = new Set(["response.output_text.delta", "response.text.delta", "response.output_audio_transcript.delta"]);

export class Talk {
  #list = $("messages");
  #send;
  #figures;
  #onDone;
  #active = null;
  #waiting = 0;
  #askedAt = null;
  #asked = null;
  #answers = new Map();
  #calls = new Map();

  /** `send(events)` posts client events; `onDone()` is called when a response has ended. */
  constructor({ send, figures, onDone }) {
    this.#send = send;
    this.#figures = figures;
    this.#onDone = onDone;
  }

  get answering() { return this.#active !== null; }

  /** Start with an empty conversation. `hasTool` chooses the suggestions. */
  clear(hasTool = false) {
    this.#active = null;
    this.#waiting = 0;
    this.#askedAt = null;
    this.#answers.clear();
    this.#calls.clear();
    this.#list.replaceChildren(this.#hint(hasTool ? [TOOL_HINT, ...HINTS.slice(0, 2)] : HINTS));
    $("cancel").hidden = true;
  }

  say(text) {
    this.#begin();
    this.#message("user", text);
    const item = { type: "message", role: "user", content: [{ type: "input_text", text }] };
    this.#sendAndAsk([{ type: "conversation.item.create", item }]);
  }

  cancel() {
    if (this.#active) this.#send([{ type: "response.cancel" }]);
  }

  note(text, kind = "") {
    this.#message("note", text).classList.toggle("bad", kind === "bad");
  }

  /** Take one server event. */
  took(event) {
    if (PARTS_OF_TEXT.has(event.type)) return this.#tookDelta(event);
    if (event.type === "response.created") {
      this.#active = event.response.id;
      $("cancel").hidden = false;
    } else if (event.type === "response.done") {
      this.#tookDone(event.response);
    } else if (event.type === "conversation.item.added" || event.type === "conversation.item.created") {
      this.#tookItem(event.item);
    } else if (event.type === "error") {
      this.note(event.error?.message ?? "The service refused an event.", "bad");
      // An error that names another event does not end the response.
      const refused = event.error?.event_id ?? this.#asked;
      if (!this.#active && refused === this.#asked) this.lost();
    }
  }

  /** No response is in progress any more. */
  settle() {
    this.#active = null;
    this.#askedAt = null;
    $("cancel").hidden = true;
    for (const answer of this.#answers.values()) answer.classList.remove("open");
  }

  /** The response that is awaited may have been lost, and its end with it: ask for the next one, if a text waits for one. */
  lost() {
    this.settle();
    this.#askWaiting();
  }

  /** The session has ended: tool calls can no longer be answered. */
  end() {
    this.settle();
    for (const { form } of this.#calls.values()) for (const field of form.elements) field.disabled = true;
  }

  toEnd() {
    this.#list.scrollTop = this.#list.scrollHeight;
  }

  #begin() {
    this.#list.querySelector(".hint")?.remove();
  }

  #sendAndAsk(events) {
    // One response at a time: the request for the next one is sent when this one is done.
    if (this.#active || this.#askedAt !== null) {
      this.#waiting += 1;
      this.#send(events);
    } else {
      this.#askedAt = performance.now();
      this.#asked = `ask_${crypto.getRandomValues(new Uint32Array(2)).join("_")}`;
      this.#send([...events, { type: "response.create", event_id: this.#asked }]);
    }
  }

  #askWaiting() {
    if (!this.#waiting) return;
    this.#waiting = 0;
    this.#sendAndAsk([]);
  }

  #tookDelta({ response_id: id, delta }) {
    if (this.#askedAt !== null && !this.#answers.has(id)) {
      this.#figures.tookDelta(performance.now() - this.#askedAt);
      this.#askedAt = null;
    }
    let answer = this.#answers.get(id);
    if (!answer) {
      this.#begin();
      answer = this.#message("assistant", "");
      answer.classList.add("open");
      this.#answers.set(id, answer);
    }
    const follows = this.#atEnd();
    const { firstElementChild: line } = answer;
    if (line.lastChild) line.lastChild.appendData(delta);
    else line.append(delta);
    if (follows) this.toEnd();
  }

  #tookDone(response) {
    const answer = this.#answers.get(response.id);
    if (answer) $("announce").textContent = answer.textContent;
    if (response.status !== "completed") {
      const detail = response.status_details?.error?.message ?? response.status_details?.reason;
      this.note(response.status === "cancelled" ? "Stopped" : `${response.status}: ${detail ?? "no reason given"}`,
        response.status === "failed" ? "bad" : "");
    }
    this.#figures.tookUsage(response.usage);
    this.settle();
    for (const item of response.output ?? []) if (item.type === "function_call") this.#tookCall(item);
    this.#askWaiting();
    this.#onDone();
  }

  /** Show what another client of this session, or this page before a reload, has sent. */
  #tookItem(item) {
    if (item?.type === "function_call_output") return this.#tookOutput(item);
    if (item?.role !== "user" || this.#askedAt !== null || this.#active) return;
    const text = item.content?.map((part) => part.text ?? "").join("");
    if (!text) return;
    this.#begin();
    this.#message("user", text);
  }

  /** Show a tool call with its arguments, and a field for its result. */
  #tookCall({ call_id: id, name, arguments: given }) {
    if (this.#calls.has(id)) return;
    const result = make("textarea", { rows: 1, value: '{"celsius": 21}', spellcheck: false });
    result.setAttribute("aria-label", `Result of ${name}`);
    const form = make("form", { className: "row" }, result, make("button", { className: "quiet", text: "Return result", type: "submit" }));
    const card = make("div", { className: "call" },
      make("p", {}, make("b", { text: "Tool call " }), make("code", { text: `${name}(${given})` })), form);
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.#sendAndAsk([{ type: "conversation.item.create", item: { type: "function_call_output", call_id: id, output: result.value } }]);
      $("say").focus();
    });
    this.#calls.set(id, { card, form });
    this.#list.append(card);
    this.toEnd();
  }

  #tookOutput({ call_id: id, output }) {
    const { card, form } = this.#calls.get(id) ?? {};
    if (!form?.isConnected) return;
    form.replaceWith(make("p", {}, make("b", { text: "Result " }), make("code", { text: output })));
    card.classList.add("done");
  }

  #message(role, text) {
    const item = make("div", { className: role }, make("p", { text }));
    this.#list.append(item);
    this.toEnd();
    return item;
  }

  #hint(texts) {
    const tries = texts.map((text) => makeButton(text, () => {
      this.say(text);
      $("say").focus();
    }));
    return make("div", { className: "hint" }, make("p", { text: "Connected. Say something, or try one of these:" }), ...tries);
  }

  #atEnd() {
    return this.#list.scrollHeight - this.#list.scrollTop - this.#list.clientHeight < 60;
  }
}
