/** The list of raw events: kept to a bound, filtered by type, text and direction, drawn once a frame. */

// As many as a browser lays out without a pause; older ones are dropped from both, and the count says so.
const KEPT = 2000;
const SHOWN = 400;

export class EventList {
  #list;
  #empty;
  #types;
  #text;
  #ways;
  #kept = [];
  #fresh = [];
  #due = false;
  #began = null;
  total = 0;

  constructor({ list, empty, form, types, text }) {
    this.#list = list;
    this.#empty = empty;
    this.#types = types;
    this.#text = text;
    this.#ways = form.elements.way;
    form.addEventListener("input", () => this.#redraw());
    form.addEventListener("submit", (event) => event.preventDefault());
  }

  /** Add one event: `way` is "up" or "down", `text` its JSON. */
  add(way, text) {
    const at = performance.now();
    this.#began ??= at;
    const type = typeOf(text);
    const kept = { way, text, type, at: at - this.#began, folded: text.toLowerCase() };
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
    list.append(...this.#fresh.slice(-SHOWN).map(row));
    this.#fresh = [];
    while (list.childElementCount > SHOWN) list.firstElementChild.remove();
    this.#empty.hidden = list.childElementCount > 0;
    this.#empty.textContent = this.#kept.length
      ? "No event passes these filters."
      : "Every event of the session appears here, as it was on the wire.";
    if (follows) list.scrollTop = list.scrollHeight;
  }
}

function row({ way, text, type, at }) {
  const item = document.createElement("li");
  item.className = way;
  item.classList.toggle("own", type.startsWith("gateway."));
  item.classList.toggle("error", type === "error" || type === "gateway.error" || type === "gateway.gap");
  const details = document.createElement("details");
  const summary = document.createElement("summary");
  summary.append(
    part("at", `${(at / 1000).toFixed(2)}`), part("way", way === "up" ? "↑" : "↓"), part("type", type), part("peek", peek(text)));
  details.append(summary);
  details.addEventListener("toggle", () => {
    if (details.open && details.childElementCount === 1) details.append(pretty(text));
  });
  item.append(details);
  return item;
}

function part(name, text) {
  const span = document.createElement("span");
  span.className = name;
  span.textContent = text;
  return span;
}

function pretty(text) {
  const block = document.createElement("pre");
  block.textContent = JSON.stringify(JSON.parse(text), null, 2);
  return block;
}

/** Give the few characters that tell one event from its neighbours. */
function peek(text) {
  const event = JSON.parse(text);
  const said = event.delta ?? event.text ?? event.item?.content?.[0]?.text ?? event.error?.message ?? event.reason;
  return typeof said === "string" ? said.slice(0, 60) : "";
}

function typeOf(text) {
  return String(JSON.parse(text).type);
}
