/** Small things that every part of the page uses. */

export const $ = (id) => document.getElementById(id);

/** Make an element with a class, text and children. */
export function make(tag, { className = "", text = "", ...properties } = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  if (className) element.className = className;
  if (text) element.append(text);
  element.append(...children);
  return element;
}

/** Make a button that acts; `label` is its name for a screen reader where its text does not say enough. */
export function makeButton(text, act, { className = "quiet", label = "" } = {}) {
  const button = make("button", { className, text, type: "button" });
  if (label) button.setAttribute("aria-label", label);
  button.addEventListener("click", () => act(button));
  return button;
}

/** Make a button that copies a text, and says so. Without a clipboard, `shown` is selected instead. */
export function copyButton(name, text, shown, label = "") {
  return makeButton(name, async (button) => {
    try {
      await navigator.clipboard.writeText(text);
      button.textContent = "Copied";
      setTimeout(() => { button.textContent = name; }, 1500);
    } catch {
      // No clipboard without a secure context: what is selected can be copied by hand.
      getSelection().selectAllChildren(shown);
    }
  }, { label });
}

/** Show one view, as its button does. */
export function showView(name) {
  document.body.dataset.view = name;
  for (const button of document.querySelectorAll(".views button")) {
    button.setAttribute("aria-pressed", String(button.dataset.show === name));
    if (button.dataset.show === name) button.scrollIntoView({ block: "nearest", inline: "nearest" });
  }
}
