/** The figures of the session: times, tokens, cost, and the call below it. */

import { $ } from "./page.js";
import { drawBars, drawLine } from "./plots.js";

const clock = new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit" });

export class Figures {
  #deltas = [];
  #tokens = [];
  #total = { in: 0, out: 0, audio: 0 };

  clear() {
    this.#deltas = [];
    this.#tokens = [];
    this.#total = { in: 0, out: 0, audio: 0 };
    this.#draw();
    this.showSession(null);
  }

  tookDelta(ms) {
    this.#deltas.push(ms);
    this.#draw();
  }

  tookUsage(usage) {
    if (!usage) return;
    const { input_tokens: below = 0, output_tokens: above = 0 } = usage;
    this.#tokens.push([below, above]);
    this.#total.in += below;
    this.#total.out += above;
    this.#total.audio += (usage.input_token_details?.audio_tokens ?? 0) + (usage.output_token_details?.audio_tokens ?? 0);
    this.#draw();
  }

  /** Show what the session object says of cost and call. `session` is null without a session. */
  showSession(session, lost = false) {
    const cost = session?.usage?.cost_usd;
    $("cost-now").textContent = session === null ? "–" : cost === undefined || cost === null ? "unknown" : dollars(cost);
    $("cost-note").textContent = session === null ? "no session"
      : cost === undefined || cost === null ? "no price for a kind of token" : `${session.usage.cached_input ?? 0} tokens cached`;
    const [call, note] = session === null ? ["–", "no session"] : callOf(session, lost);
    $("call-now").textContent = call;
    $("call-note").textContent = note;
    $("call-note").title = session?.call_id ?? "";
  }

  #draw() {
    const [deltas, tokens, total] = [this.#deltas, this.#tokens, this.#total];
    $("delta-now").textContent = deltas.length ? milliseconds(deltas.at(-1)) : "–";
    $("delta-note").textContent = deltas.length ? `median ${milliseconds(median(deltas))}` : "no answer yet";
    drawLine($("delta-plot"), deltas);
    $("tokens-now").textContent = (total.in + total.out).toLocaleString("en");
    $("tokens-note").textContent = `in ${total.in} · out ${total.out} · audio ${total.audio}`;
    $("tokens-plot").closest(".figure").classList.toggle("alarm", total.audio > 0);
    drawBars($("tokens-plot"), tokens);
  }
}

function callOf({ state, call_id: id, call_expires_at: ends, attached, model }, lost) {
  if (state === "closed") return ["ended", id ?? ""];
  if (lost || state === "recovering") return ["replacing", "the call was lost; a new one is being opened"];
  // At that time OpenAI ends the call, and the gateway has opened another one.
  const until = ends ? `until ${clock.format(ends * 1000)}` : "";
  return [attached ? "attached" : "open", [until, model].filter(Boolean).join(" · ")];
}

/** Show two significant digits: a turn costs fractions of a cent. */
function dollars(value) {
  if (value === 0) return "$0";
  const digits = value >= 1 ? 2 : Math.min(6, 1 - Math.floor(Math.log10(value)));
  return `$${value.toFixed(digits)}`;
}

function milliseconds(value) {
  return value < 1000 ? `${Math.round(value)} ms` : `${(value / 1000).toFixed(1)} s`;
}

function median(values) {
  const sorted = [...values].sort((one, other) => one - other);
  return sorted[Math.floor(sorted.length / 2)];
}
