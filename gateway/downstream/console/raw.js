/** The form that sends client events as typed, with templates for the usual ones. */

import { $ } from "./page.js";

const TEXT = { type: "input_text", text: "Hello" };

export const TOOL = {
  type: "function",
  name: "get_weather",
  description: "The weather in a city.",
  parameters: { type: "object", properties: { city: { type: "string" } }, required: ["city"] },
};

const TEMPLATES = {
  "A message and its answer": [
    { type: "conversation.item.create", item: { type: "message", role: "user", content: [TEXT] } },
    { type: "response.create" },
  ],
  "conversation.item.create": { type: "conversation.item.create", item: { type: "message", role: "user", content: [TEXT] } },
  "response.create": { type: "response.create" },
  "response.create, outside the conversation": {
    type: "response.create", response: { conversation: "none", input: [{ type: "message", role: "user", content: [TEXT] }] },
  },
  "response.cancel": { type: "response.cancel" },
  "session.update, instructions": { type: "session.update", session: { type: "realtime", instructions: "Answer in one word." } },
  "session.update, a tool": { type: "session.update", session: { type: "realtime", tools: [TOOL], tool_choice: "auto" } },
  "function_call_output": [
    { type: "conversation.item.create", item: { type: "function_call_output", call_id: "call_…", output: "{\"celsius\": 21}" } },
    { type: "response.create" },
  ],
  "conversation.item.retrieve": { type: "conversation.item.retrieve", item_id: "item_…" },
  "conversation.item.delete": { type: "conversation.item.delete", item_id: "item_…" },
};

export class RawForm {
  #send;

  constructor({ send }) {
    this.#send = send;
    for (const name of Object.keys(TEMPLATES)) $("raw-template").add(new Option(name));
    $("raw-template").addEventListener("change", () => this.#fill());
    $("raw-form").addEventListener("submit", (event) => {
      event.preventDefault();
      this.#submit();
    });
    this.#fill();
  }

  /** Show whether there is a session to send to. */
  enable(open) {
    $("raw-send").disabled = !open;
    $("raw-note").className = "";
    $("raw-note").textContent = open ? "It is sent as it is written." : "Start or join a session first.";
  }

  /** Put an event into the field, to be changed and sent. */
  edit(text) {
    $("raw-text").value = JSON.stringify(JSON.parse(text), null, 2);
    $("raw-text").focus();
  }

  #fill() {
    $("raw-text").value = JSON.stringify(TEMPLATES[$("raw-template").value], null, 2);
  }

  #submit() {
    let events;
    try {
      events = [JSON.parse($("raw-text").value)].flat();
    } catch (error) {
      return this.#say(`This is not JSON: ${error.message}`, "problem");
    }
    const wrong = events.findIndex((event) => typeof event?.type !== "string");
    if (!events.length || wrong >= 0) return this.#say(`Event ${wrong + 1} has no “type”.`, "problem");
    this.#send(events);
    return this.#say(`Sent ${events.length === 1 ? events[0].type : `${events.length} events`}.`);
  }

  #say(text, kind = "") {
    $("raw-note").className = kind;
    $("raw-note").textContent = text;
  }
}
