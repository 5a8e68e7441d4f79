/** A bounded queue of events to send, delivered in order and once each. Knows nothing of sessions. */

import { randomKey } from "./relay-http.js";

// What Chromium's data channels hold before `send` throws.
const MAX_BUFFERED_BYTES = 16 * 1024 * 1024;

const utf8 = new TextEncoder();

export class Outbox {
  #queue = [];
  #sender = null;
  #post;
  #limits;
  #isOver;
  #onRefused;
  #onDrained;
  bufferedAmount = 0;

  /**
   * `post(body, headers)` sends until it is answered. `limits()` returns the session's limits, `isOver()` whether the channel
   * has ended. `onRefused(error)` is called with what was refused, `onDrained(before, now)` with the bytes unsent.
   */
  constructor({ post, limits, isOver, onRefused, onDrained }) {
    this.#post = post;
    this.#limits = limits;
    this.#isOver = isOver;
    this.#onRefused = onRefused;
    this.#onDrained = onDrained;
  }

  /** A promise while something is being sent, else null. */
  get sending() { return this.#sender; }

  add(text) {
    const size = utf8.encode(text).length;
    if (this.bufferedAmount + size > MAX_BUFFERED_BYTES) throw new DOMException("Too much is unsent", "OperationError");
    this.#queue.push({ text, size });
    this.bufferedAmount += size;
    this.#sender ??= this.#drain();
  }

  async #drain() {
    await null; // What one turn of the page sends makes one batch.
    while (this.#queue.length && !this.#isOver()) {
      const batch = this.#nextBatch();
      await this.#deliver(batch);
      const before = this.bufferedAmount;
      this.#queue.splice(0, batch.length);
      for (const { size } of batch) this.bufferedAmount -= size;
      this.#onDrained(before, this.bufferedAmount);
    }
    this.#sender = null;
  }

  #nextBatch() {
    const { max_batch_events: events, max_body_bytes: most } = this.#limits();
    let bytes = 2;
    const fits = ({ size }, index) => index < events && (bytes += size + 1) <= most;
    const end = this.#queue.findIndex((event, index) => !fits(event, index));
    return this.#queue.slice(0, end === -1 ? this.#queue.length : Math.max(end, 1));
  }

  /** Send a batch until it is answered. A refused batch is sent again event by event, so that only the bad one is lost. */
  async #deliver(batch) {
    const texts = batch.map(({ text }) => text);
    const body = texts.length === 1 ? texts[0] : `[${texts.join(",")}]`;
    try {
      await this.#post(body, { "Idempotency-Key": randomKey() });
    } catch (error) {
      if (this.#isOver()) return;
      if (batch.length > 1 && [400, 403, 413].includes(error.status)) {
        for (const event of batch) await this.#deliver([event]);
        return;
      }
      error.dropped = texts;
      this.#onRefused(error);
    }
  }
}
