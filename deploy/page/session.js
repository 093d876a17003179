// Who is signed in: a token from a field, a link or Google. Kept in this tab only.

import { h } from "./text.js";
import { kept } from "./ui.js";

const TOKEN = "token";
const GOOGLE_SCRIPT = "https://accounts.google.com/gsi/client";
const tab = kept(() => sessionStorage);

export const keptToken = () => tab.get(TOKEN) ?? "";
export const keepToken = (token) => tab.set(TOKEN, token);
export const forgetToken = () => tab.set(TOKEN, null);

/** Return the token of a link that ends in #token=…, and take it out of the address bar and the tab's history. */
export function takeToken(place, past) {
  const match = /^#token=([^&]*)$/.exec(place.hash);
  if (!match) return "";
  past.replaceState(null, "", `${place.pathname}${place.search}`);
  try {
    return decodeURIComponent(match[1]);
  } catch {
    return "";
  }
}

/** Whom an identity token names, to be shown only: the service alone checks it. */
export function nameOf(token) {
  try {
    const claims = JSON.parse(new TextDecoder().decode(Uint8Array.from(atob(token.split(".")[1].replace(/-/g, "+").replace(/_/g, "/")), (c) => c.charCodeAt(0))));
    return String(claims.email ?? claims.name ?? claims.sub ?? "").slice(0, 80);
  } catch {
    return "";
  }
}

let loaded = null;

/** Put Google's button into `place`. Its script is loaded here and nowhere else: only where a client is configured. */
export function offerGoogle(place, clientId, onToken) {
  place.replaceChildren(h("p", { class: "hint" }, "Google's button is being loaded…"));
  loaded ??= new Promise((done, fail) => {
    const script = document.createElement("script");
    script.src = GOOGLE_SCRIPT;
    script.onload = done;
    script.onerror = fail;
    document.head.append(script);
  });
  loaded.then(() => {
    const { id } = globalThis.google.accounts;
    id.initialize({ client_id: clientId, callback: ({ credential }) => onToken(credential) });
    place.replaceChildren();
    id.renderButton(place, { theme: "outline", size: "large", text: "signin_with" });
  }).catch(() => {
    loaded = null;
    place.replaceChildren(h("p", { class: "hint" }, "Google's button cannot be loaded. Paste a token instead."));
  });
}
