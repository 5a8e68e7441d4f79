/** The list of raw events: bounded, filtered by type, text and direction, drawn once a frame. */

// As many as a browser lays out without a pause. Older ones are dropped; the count includes them.
const KEPT = 2000;
const SHOWN = 400;

import { copyButton, make, makeButton } from "./page.js";

export class EventList {
  #list;
  #onEdit;
  #empty;
  #types;
  #text;
  #ways;
  #kept = [];
  #fresh = [];
  #due = false;
  #began = null;
  total = 0;

  /** `onEdit(text)` is called with an event to edit and send again. */
  constructor({ list, empty, form, types, text, onEdit }) {
    this.#list = list;
    this.#onEdit = onEdit;
    this.#empty = empty;
    this.#types = types;
    this.#text = text;
    this.#ways = form.elements.way;
    form.addEventListener("input", () => this.#redraw());
    form.addEventListener("submit", (event) => event.preventDefault());
  }

  /** Add one event: `way` is "up" or "down", `text` its JSON, `id` its ID in the log. */
  add(way, text, id = "") {
    const at = performance.now();
    this.#began ??= at;
    const type = typeOf(text);
    const kept = { way, text, type, id, at: at - this.#began, folded: `${id} ${text.toLowerCase()}` };
    this.total += 1;
    this.#kept.push(kept);
    if (this.#kept.length > KEPT) this.#kept.shift();
    this.#know(type);
    if (this.#wants(kept)) this.#fresh.push(kept);
    this.#schedule();
  }

  clear() {
    this.#kept = [];
    this.#fresh = [];
    this.#began = null;
    this.total = 0;
    this.#types.replaceChildren(this.#types.options[0]);
    this.#redraw();
  }

  #know(type) {
    const options = [...this.#types.options];
    if (options.some((option) => option.value === type)) return;
    this.#types.insertBefore(new Option(type, type), options.slice(1).find((option) => option.value > type) ?? null);
  }

  #wants({ way, type, folded }) {
    return (
      (!this.#ways.value || this.#ways.value === way) &&
      (!this.#types.value || this.#types.value === type) &&
      folded.includes(this.#text.value.trim().toLowerCase())
    );
  }

  #redraw() {
    this.#list.replaceChildren();
    this.#fresh = this.#kept.filter((kept) => this.#wants(kept));
    this.#draw();
  }

  #schedule() {
    if (this.#due) return;
    this.#due = true;
    // A page in the background gets no frames, and its list must not grow without one.
    const later = document.hidden ? (draw) => setTimeout(draw, 250) : requestAnimationFrame;
    later(() => {
      this.#due = false;
      this.#draw();
    });
  }

  #draw() {
    const list = this.#list;
    const follows = list.scrollHeight - list.scrollTop - list.clientHeight < 40;
    list.append(...this.#fresh.slice(-SHOWN).map((kept) => row(kept, this.#onEdit)));
    this.#fresh = [];
    while (list.childElementCount > SHOWN) list.firstElementChild.remove();
    this.#empty.hidden = list.childElementCount > 0;
    this.#empty.textContent = this.#kept.length
      ? "No event passes these filters."
      : "Every event of the session appears here, as it was on the wire.";
    if (follows) list.scrollTop = list.scrollHeight;
  }
}

function row({ way, text, type, id, at }, onEdit) {
  const item = make("li", { className: way });
  item.classList.toggle("own", type.startsWith("gateway."));
  item.classList.toggle("error", type === "error" || type === "gateway.error" || type === "gateway.gap");
  const summary = make("summary", {},
    part("at", `${(at / 1000).toFixed(2)}`), part("way", way === "up" ? "↑" : "↓"), part("type", type), part("peek", peek(text)),
    part("id", id));
  const details = make("details", {}, summary);
  details.addEventListener("toggle", () => {
    if (details.open && details.childElementCount === 1) details.append(...opened({ way, text, type, id }, onEdit));
  });
  item.append(details);
  return item;
}

/** Return what an open event shows: its ID, its JSON, and what can be done with them. */
function opened({ way, text, type, id }, onEdit) {
  const block = make("pre", { text: JSON.stringify(JSON.parse(text), null, 2), tabIndex: 0 });
  block.setAttribute("aria-label", `JSON of ${type}`);
  block.setAttribute("role", "region");
  const shown = make("code", { text: id || (way === "up" ? "sent from this page" : "not in the log") });
  const tools = make("div", { className: "event-tools" }, shown);
  if (id) tools.append(copyButton("Copy ID", id, shown));
  tools.append(copyButton("Copy JSON", text, block));
  if (way === "up") tools.append(makeButton("Edit and send", () => onEdit(text)));
  return [tools, block];
}

function part(name, text) {
  return make("span", { className: name, text });
}

/** Return a short text that distinguishes an event from its neighbours. */
function peek(text) {
  const event = JSON.parse(text);
  const said = event.delta ?? event.text ?? event.item?.content?.[0]?.text ?? event.error?.message ?? event.reason;
  return typeof said === "string" ? said.slice(0, 60) : "";
}

function typeOf(text) {
  return String(JSON.parse(text).type);
}
