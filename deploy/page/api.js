// Calls of the service's functions, and what becomes of their errors: sentences.

const TIMEOUT_MS = 60_000;

export class CallError extends Error {
  constructor(kind, message, problems = [message]) {
    super(message);
    this.kind = kind; // a status of the service, or OFFLINE
    this.problems = problems; // one sentence each
  }
}

/** Begin with a capital letter and end with a full stop, unless it begins with a name or a quoted value. */
export function sentence(text) {
  const whole = String(text ?? "").trim();
  if (!whole) return "";
  const first = whole.split(/[\s:,]/, 1)[0];
  const begun = /^[a-z]+('s)?$/.test(first) && !whole.startsWith(`${first}:`) ? whole[0].toUpperCase() + whole.slice(1) : whole;
  return /[.!?)…]$/.test(begun) ? begun : `${begun}.`;
}

/** The findings of an archive, which come as one text: each begins with a file and a colon. */
export const splitProblems = (text) => text.split(/; (?=(?:'[^']*'|[^\s:;]+)(?:, line \d+)?: )/);

export class Api {
  constructor({ base = "./", fetch = globalThis.fetch.bind(globalThis), now = Date.now } = {}) {
    this.base = base;
    this.token = "";
    this.skewMs = 0; // of the service's clock against this one
    this._fetch = fetch;
    this._now = now;
  }

  /** The service's time. */
  now() {
    return this._now() + this.skewMs;
  }

  call(name, data = {}) {
    return this._send(name, JSON.stringify({ data }), "application/json");
  }

  upload(agentId, zip) {
    return this._send(`uploadAgentSource?agentId=${encodeURIComponent(agentId)}`, zip, "application/zip");
  }

  async _send(path, body, type) {
    let answer, content;
    try {
      answer = await this._fetch(this.base + path, {
        method: "POST", body, cache: "no-store", credentials: "omit", redirect: "error",
        headers: { "Content-Type": type, Authorization: `Bearer ${this.token}` },
        signal: AbortSignal.timeout(TIMEOUT_MS),
      });
      content = await answer.text();
    } catch (error) {
      const late = error?.name === "TimeoutError";
      throw new CallError("OFFLINE", late ? "The service does not answer in time." : "The service cannot be reached.");
    }
    const date = Date.parse(answer.headers.get("Date") ?? "");
    if (date && Math.abs(date - this._now()) > 2000) this.skewMs = date - this._now();
    else this.skewMs = 0;
    let found = null;
    try {
      found = JSON.parse(content);
    } catch { /* told below */ }
    if (answer.ok && found && typeof found === "object") return found.result ?? found;
    throw readError(answer.status, found);
  }
}

export function readError(status, found) {
  const error = found?.error;
  if (status === 401) {
    const message = typeof error === "object" && error?.message ? error.message : "the token does not hold: sign in again";
    return new CallError("UNAUTHENTICATED", sentence(message));
  }
  if (error && typeof error === "object") return new CallError(String(error.status ?? "INTERNAL"), sentence(error.message || "the service failed"));
  if (typeof error === "string") {
    const text = typeof found.message === "string" && found.message ? found.message : error;
    const problems = error === "Invalid source" ? splitProblems(text).map(sentence) : [sentence(text)];
    return new CallError(String(found.status ?? (status >= 500 ? "INTERNAL" : "INVALID_ARGUMENT")), problems.join(" "), problems);
  }
  if (status === 413) return new CallError("INVALID_ARGUMENT", "The archive is too large for the service.");
  if (status === 429 || status === 503) return new CallError("UNAVAILABLE", "The service is busy. Try again in a moment.");
  return new CallError("INTERNAL", `The service answered with ${status} and nothing that can be read.`);
}
