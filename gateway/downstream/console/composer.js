/** The composer: the field in which a text is written, and the button that stops an answer. */

import { $ } from "./page.js";

export class Composer {
  /**
   * `say` takes a text, and returns whether it was sent; `cancel` stops the answer, and `answering` returns whether there is one.
   * Enter sends, Shift+Enter starts a new line, Escape stops.
   */
  constructor({ say, cancel, answering }) {
    const form = $("composer");
    const field = $("say");
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      const text = field.value.trim();
      if (!text || !say(text)) return;
      field.value = "";
      this.fit();
    });
    field.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
      event.preventDefault();
      form.requestSubmit();
    });
    field.addEventListener("input", () => this.fit());
    $("cancel").addEventListener("click", () => {
      cancel();
      field.focus({ preventScroll: true });
    });
    addEventListener("keydown", (event) => {
      if (event.key === "Escape" && answering() && !event.isComposing) cancel();
    });
  }

  /** Make the field as high as its text. */
  fit() {
    const field = $("say");
    field.style.height = "auto";
    field.style.height = `${field.scrollHeight + 2}px`;
  }
}
