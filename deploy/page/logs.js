// The log of an agent or of its build: followed, from a time on, filtered.

import { sentence } from "./api.js";
import { levelOf, mergeLines } from "./state.js";
import { Poller } from "./poll.js";
import { formatTime, h, parseTime, plural, setText } from "./text.js";

const SINCE = [["", "last 200 lines"], ["5", "last 5 minutes"], ["60", "last hour"], ["1440", "last 24 hours"], ["10080", "last 7 days"]];
const MOST = 1000; // lines that one answer may have
const OVERLAP_MS = 1000;
const MAX_SHOWN = 4000; // characters of one line

export class LogsView {
  constructor(api, agentId, { onSignedOut, onBuildLines }) {
    this._api = api;
    this._agentId = agentId;
    this._onSignedOut = onSignedOut;
    this._onBuildLines = onBuildLines;
    this._lines = { agent: [], build: [] };
    this._kind = "agent";
    this._round = 0;
    this._since = h("select", { "aria-label": "From when", onchange: () => this._restart() }, SINCE.map(([value, label]) => h("option", { value }, label)));
    this._filter = h("input", { type: "search", placeholder: "Filter lines", "aria-label": "Filter lines", oninput: () => this._applyFilter() });
    this._follow = h("input", { type: "checkbox", id: "follow", checked: true, onchange: () => this._setFollow(this._follow.checked) });
    this._count = h("output", { class: "count" });
    this._tabs = ["agent", "build"].map((kind) => h("button", { type: "button", "data-kind": kind, "aria-pressed": String(kind === "agent"), onclick: () => this.show(kind) }, kind === "agent" ? "Agent" : "Build"));
    this._problem = h("p", { class: "problem", role: "status", hidden: true });
    this._none = h("p", { class: "empty small" }, "Asking for the log…");
    this._rows = h("div", { class: "rows" });
    this._box = h("div", { class: "log", role: "log", "aria-live": "off", "aria-label": "Log", tabindex: "0", onscroll: () => this._scrolled() }, this._rows);
    this.element = h("section", { class: "logs", "aria-labelledby": "logs-title" },
      h("div", { class: "row head" }, h("div", { class: "row" }, h("h2", { id: "logs-title" }, "Log"), this._count), h("div", { class: "tabs", role: "group", "aria-label": "Which log" }, this._tabs)),
      h("div", { class: "row tools" }, this._since, this._filter,
        h("label", { class: "check", for: "follow" }, this._follow, "Follow"),
        h("button", { type: "button", onclick: () => this._save() }, "Save")),
      this._problem, this._none, this._box);
    new ResizeObserver(() => this._toEnd()).observe(this._box);
    this._poller = new Poller(() => this._ask(), { onChange: () => this._told(), shortest: 2000 });
  }

  start() {
    this._poller.start();
  }

  stop() {
    this._poller.stop();
  }

  /** Ask now, since something has happened. */
  poke() {
    if (this._follow.checked) this._poller.poke();
  }

  /** Lines of the build that are held. */
  get buildLines() {
    return this._lines.build.map(({ text }) => text);
  }

  show(kind) {
    this._kind = kind;
    for (const tab of this._tabs) tab.setAttribute("aria-pressed", String(tab.dataset.kind === kind));
    this._since.disabled = kind === "build";
    this._draw();
  }

  _restart() {
    this._round += 1;
    this._lines.agent = [];
    this._draw();
    this._poller.poke();
  }

  async _ask() {
    if (!this._follow.checked && this._round === this._asked) return { isBusy: false, changed: false };
    const round = this._round;
    const held = this._lines.agent;
    const last = parseTime(held.at(-1)?.time);
    const minutes = Number(this._since.value);
    const data = { agentId: this._agentId, limit: minutes || last ? MOST : 200 };
    if (last) data.since = new Date(last - OVERLAP_MS).toISOString();
    else if (minutes) data.since = new Date(this._api.now() - minutes * 60_000).toISOString();
    let answer;
    try {
      answer = await this._api.call("getTradingAgentLogs", data);
    } catch (error) {
      if (error.kind === "UNAUTHENTICATED") this._onSignedOut(error.message);
      throw error;
    }
    if (round !== this._round) return { isBusy: true, changed: true };
    const isFirst = this._asked !== round;
    this._asked = round;
    this._unavailable = answer.unavailable ?? [];
    // Without a time there is nothing to go on from: all is read anew.
    const base = last || !held.length ? held : [];
    const merged = mergeLines(base, answer.lines);
    this._lines.agent = merged.lines;
    const isNewBuild = answer.buildId !== this._buildId;
    if (isNewBuild) this._lines.build = [];
    this._buildId = answer.buildId;
    const build = answer.buildLines.map((text) => ({ time: null, text }));
    const changedBuild = JSON.stringify(build) !== JSON.stringify(this._lines.build) && build.length > 0;
    if (changedBuild) {
      this._lines.build = build;
      this._onBuildLines();
    }
    const changed = merged.added.length > 0;
    if (isFirst || isNewBuild || base !== held || (this._kind === "build" ? changedBuild : merged.lines.length !== held.length + merged.added.length)) this._draw();
    else if (this._kind === "agent" && changed) this._append(merged.added);
    else this._tell();
    return { isBusy: answer.status === "deploying", changed: changed || changedBuild };
  }

  _told() {
    const { error } = this._poller;
    // That the service is gone is told at the top.
    const problems = error ? (error.kind === "OFFLINE" ? [] : [error.message]) : (this._unavailable ?? []).map(sentence);
    setText(this._problem, problems.join(" "));
    this._problem.hidden = !problems.length;
    this._box.classList.toggle("old", Boolean(this._poller.error));
  }

  _draw() {
    this._rows.replaceChildren();
    this._append(this._lines[this._kind]);
  }

  _append(lines) {
    const text = this._filter.value.trim().toLowerCase();
    this._rows.append(...lines.map((line) => {
      const at = parseTime(line.time);
      const shown = line.text.length > MAX_SHOWN ? `${line.text.slice(0, MAX_SHOWN)}…` : line.text;
      const row = h("div", { class: "line", "data-level": levelOf(line.text) || null }, at ? h("time", { datetime: line.time }, formatTime(at)) : "", h("span", {}, shown));
      row.hidden = Boolean(text) && !line.text.toLowerCase().includes(text);
      return row;
    }));
    this._tell();
    this._toEnd();
  }

  _toEnd() {
    if (this._follow.checked) this._box.scrollTop = this._box.scrollHeight;
  }

  _applyFilter() {
    const text = this._filter.value.trim().toLowerCase();
    this._lines[this._kind].forEach((line, at) => {
      const row = this._rows.children[at];
      if (row) row.hidden = Boolean(text) && !line.text.toLowerCase().includes(text);
    });
    this._tell();
    this._toEnd();
  }

  _tell() {
    const held = this._lines[this._kind].length;
    const text = this._filter.value.trim();
    const shown = text ? this._rows.querySelectorAll(".line:not([hidden])").length : held;
    setText(this._count, !held ? "" : text ? `${shown.toLocaleString("en")} of ${plural(held, "line")}` : plural(held, "line"));
    const none = this._kind === "build"
      ? "No build lines. They are here while a build runs, and after one that failed."
      : this._since.value ? "The agent has written nothing since then." : "The agent has written nothing, or does not run.";
    setText(this._none, this._asked === undefined ? "Asking for the log…" : held ? "No line fits the filter." : none);
    this._none.hidden = shown > 0;
    this._box.hidden = !shown;
  }

  _setFollow(on) {
    this._follow.checked = on;
    if (!on) return;
    this._toEnd();
    this._poller.poke();
  }

  /** Reading further up ends following; it goes on at the end. */
  _scrolled() {
    const isAtEnd = this._box.scrollHeight - this._box.scrollTop - this._box.clientHeight < 24;
    if (!isAtEnd && this._follow.checked && this._box.scrollTop < (this._lastTop ?? 0)) this._follow.checked = false;
    this._lastTop = this._box.scrollTop;
  }

  _save() {
    const lines = this._lines[this._kind].map(({ time, text }) => (time ? `${time} ${text}\n` : `${text}\n`));
    const address = URL.createObjectURL(new Blob(lines, { type: "text/plain" }));
    h("a", { href: address, download: `${this._agentId.replace(/[^\w.-]+/g, "-")}-${this._kind}.log` }).click();
    setTimeout(() => URL.revokeObjectURL(address), 1000);
  }
}
