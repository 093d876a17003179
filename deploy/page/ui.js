// Parts that several views use: dialogs, hints that are shown once, announcements, kept values.

import { h } from "./text.js";

/** A value that survives the page; nothing is kept where the browser keeps nothing. */
export const kept = (storage) => ({
  get(name) {
    try { return storage().getItem(`dry-work:${name}`); } catch { return null; }
  },
  set(name, value) {
    try {
      if (value === null) storage().removeItem(`dry-work:${name}`);
      else storage().setItem(`dry-work:${name}`, value);
    } catch { /* it is forgotten then */ }
  },
});
const forever = kept(() => localStorage);

/** Tell a screen reader. */
export function announce(text) {
  document.getElementById("announce").textContent = text;
}

/** A hint for the first time; empty once it was put away. */
export function hint(name, ...content) {
  if (forever.get(`hint-${name}`)) return "";
  const box = h("div", { class: "tip" }, h("p", {}, ...content), h("button", {
    type: "button", class: "quiet", onclick: () => {
      forever.set(`hint-${name}`, "seen");
      box.remove();
    },
  }, "Got it"));
  return box;
}

/** Open a dialog and resolve with what `act` returned, or null when it was left. `act` may throw: it is shown. */
export function openDialog({ title, content, action, isDanger = false, act }) {
  return new Promise((done) => {
    let result = null;
    const problem = h("p", { class: "problem", role: "alert", hidden: true });
    const ok = h("button", { type: "submit", class: isDanger ? "main danger" : "main" }, action);
    const close = () => dialog.close();
    const form = h("form", {
      onsubmit: async (event) => {
        event.preventDefault();
        if (ok.disabled) return;
        ok.disabled = true;
        problem.hidden = true;
        try {
          result = await act(form);
          close();
        } catch (error) {
          problem.textContent = error.message;
          problem.hidden = false;
          ok.disabled = false;
        }
      },
    }, h("h2", { id: "dialog-title" }, title), ...content, problem,
    h("div", { class: "row end" }, h("button", { type: "button", onclick: close }, "Cancel"), ok));
    const dialog = h("dialog", {
      "aria-labelledby": "dialog-title",
      onclose: () => {
        dialog.remove();
        // The button that opened it may be gone by now: the keyboard is not to begin at the top again.
        if (document.activeElement === document.body) (document.querySelector(".detail h1") ?? document.getElementById("main")).focus();
        done(result);
      },
      onclick: (event) => event.target === dialog && close(),
    }, form);
    form.ok = ok;
    document.body.append(dialog);
    dialog.showModal();
  });
}

/** Do something with a button switched off; return its result, or show its error in `problem` and return undefined. */
export async function attempt(button, problem, act) {
  if (button.disabled) return undefined;
  button.disabled = true;
  button.setAttribute("aria-busy", "true");
  showProblem(problem, []);
  try {
    return (await act()) ?? true;
  } catch (error) {
    showProblem(problem, error.problems ?? [error.message]);
    return undefined;
  } finally {
    button.disabled = false;
    button.removeAttribute("aria-busy");
  }
}

export function showProblem(element, problems) {
  element.hidden = !problems.length;
  element.replaceChildren(problems.length > 1 ? h("ul", {}, problems.map((each) => h("li", {}, each))) : problems[0] ?? "");
}
