// From files to a deployment: drop or choose, check, deploy. And the sources that are stored.

import { ENDED } from "./list.js";
import { SourceError, chosenEntries, droppedEntries, readSource, symbolsText } from "./source.js";
import { makeZip } from "./zip.js";
import { formatAge, formatBytes, formatDate, h, parseTime, plural } from "./text.js";
import { announce, attempt, hint, openDialog, showProblem } from "./ui.js";

const FEW = 5;

export class DeployView {
  constructor(app, agentId) {
    this._app = app;
    this._agentId = agentId;
    this._problem = h("div", { class: "problem", role: "alert", hidden: true });
    this._files = h("input", { type: "file", id: "choose-files", multiple: true, hidden: true, accept: ".zip,.py,.toml,.txt", onchange: (event) => this._chosen(event) });
    this._folder = h("input", { type: "file", id: "choose-folder", webkitdirectory: true, hidden: true, onchange: (event) => this._chosen(event) });
    this._zone = h("div", { class: "zone" },
      h("p", { class: "zone-title" }, "Drop a zip, a folder or a Python file"),
      h("p", { class: "hint" }, "It is checked first. Nothing runs before you say so."),
      h("div", { class: "row" },
        h("button", { type: "button", onclick: () => this._files.click() }, "Choose files"),
        h("button", { type: "button", onclick: () => this._folder.click() }, "Choose a folder")),
      this._files, this._folder);
    this._panel = h("div", { class: "panel", hidden: true });
    this.element = h("section", { class: "deploy", "aria-labelledby": "deploy-title" }, h("h2", { id: "deploy-title" }, "Deploy"),
      hint("deploy", "An agent is a folder with ", h("code", {}, "dry-work.toml"), " and the strategy, as ", h("code", {}, "dry-work new"), " makes it. A single ", h("code", {}, ".py"), " with a Backtrader strategy will do."),
      this._zone, this._panel, this._problem);
    this._shown = h("div");
    this.sources = h("section", { class: "sources", "aria-labelledby": "sources-title", hidden: true }, h("h2", { id: "sources-title" }, "Stored sources"), this._shown);
  }

  /** Let files be dropped anywhere on `area`. */
  listen(area) {
    let depth = 0;
    const hasFiles = (event) => [...event.dataTransfer.types].includes("Files");
    const mark = (on) => this._zone.classList.toggle("over", on);
    area.addEventListener("dragenter", (event) => hasFiles(event) && mark(++depth > 0));
    area.addEventListener("dragleave", (event) => hasFiles(event) && mark((depth = Math.max(0, depth - 1)) > 0));
    area.addEventListener("dragover", (event) => hasFiles(event) && event.preventDefault());
    area.addEventListener("drop", (event) => {
      mark(false);
      depth = 0;
      if (!hasFiles(event)) return;
      event.preventDefault();
      this._take(droppedEntries(event.dataTransfer));
    });
  }

  _chosen(event) {
    const entries = chosenEntries(event.target);
    event.target.value = "";
    if (entries.length) this._take(Promise.resolve(entries));
  }

  async _take(entries) {
    if (this._isTaking) return;
    this._isTaking = true;
    showProblem(this._problem, []);
    try {
      this._show(h("p", { class: "doing" }, "Reading the files…"));
      const source = await readSource(await entries, this._app.config.maxArchiveBytes);
      if (source.asksSymbols) this._askSymbols(source);
      else await this._upload(source);
    } catch (error) {
      const told = error instanceof SourceError || error.kind ? error.problems ?? [error.message] : [`The files cannot be read: ${error.message}.`];
      this._reset();
      showProblem(this._problem, told);
      if (error.kind === "UNAUTHENTICATED") this._app.signedOut(error.message);
    } finally {
      this._isTaking = false;
    }
  }

  _askSymbols(source) {
    const input = h("input", { id: "symbols", required: true, autocapitalize: "characters", spellcheck: "false", placeholder: "SPY, BTC/USD" });
    const ok = h("button", { type: "submit", class: "main" }, "Check");
    this._show(h("form", {
      onsubmit: (event) => {
        event.preventDefault();
        const bytes = new TextEncoder().encode(symbolsText(input.value));
        attempt(ok, this._problem, () => this._upload({ ...source, files: [...source.files, { path: "symbols.txt", bytes }] }));
      },
    }, h("label", { for: "symbols" }, "What is it to trade?"), input, h("p", { class: "hint" }, "Stocks such as SPY, crypto pairs such as BTC/USD."),
    h("div", { class: "row" }, ok, h("button", { type: "button", onclick: () => this._reset() }, "Cancel"))));
    input.focus();
  }

  async _upload(source) {
    const zip = source.zip ?? makeZip(source.files);
    const what = source.zip ? source.name : `${plural(source.files.length, "file")}${source.ignored ? `, ${source.ignored.toLocaleString("en")} left out` : ""}`;
    const before = [...this._panel.childNodes];
    this._show(h("p", { class: "doing" }, `Sending ${formatBytes(zip.length)}, and checking…`));
    let answer;
    try {
      answer = await this._app.upload(this._agentId, zip);
    } catch (error) {
      this._panel.replaceChildren(...before);
      throw error;
    }
    const ok = h("button", { type: "button", class: "main", id: "deploy-now" }, "Deploy");
    ok.addEventListener("click", async () => {
      const done = await attempt(ok, this._problem, () => this._app.act("deployTradingAgent", this._agentId, { sourceDigest: answer.sourceDigest }));
      if (done) this._reset();
    });
    const facts = [["Strategy", answer.agent], ["Trades", listSymbols(answer.symbols)], ["Archive", `${what}, ${formatBytes(answer.sizeBytes)}`]];
    this._show(h("p", { class: "ok" }, "Checked, and stored. It is not deployed yet."),
      h("dl", { class: "facts" }, facts.map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, value)))),
      ...answer.notes.map((note) => h("p", { class: "note" }, `${note}.`)),
      h("div", { class: "row" }, ok, h("button", { type: "button", onclick: () => this._reset() }, "Not now")));
    announce("The source is checked and stored. It can be deployed.");
    ok.focus();
  }

  _show(...content) {
    this._panel.replaceChildren(...content);
    this._panel.hidden = false;
    this._zone.hidden = true;
  }

  _reset() {
    this._panel.hidden = true;
    this._zone.hidden = false;
    showProblem(this._problem, []);
  }

  renderSources(agent) {
    const seen = JSON.stringify([agent.sources, agent.sourceDigest, agent.status, this._showAll]);
    if (seen === this._seen) return;
    this._seen = seen;
    const now = this._app.api.now();
    const newest = [...agent.sources].reverse();
    this.sources.hidden = !newest.length;
    const rows = (this._showAll ? newest : newest.slice(0, FEW)).map((source) => {
      const isNewest = source.digest === agent.sourceDigest;
      const word = agent.status === "deploying" ? "being deployed" : ENDED[agent.status];
      const isOn = isNewest && ["deployed", "deploying"].includes(agent.status);
      const at = parseTime(source.uploaded);
      return h("li", {},
        h("span", { class: "what" }, h("time", { datetime: source.uploaded, title: formatDate(at) }, now - at < 86_400_000 ? formatAge(now - at) : formatDate(at)),
          isNewest && word ? h("span", { class: "tag" }, word) : "",
          h("span", { class: "sub" }, formatBytes(source.sizeBytes), " · ", h("code", { title: source.digest }, source.digest.slice(0, 10)))),
        isOn ? "" : h("button", { type: "button", disabled: agent.status === "deploying", "aria-label": `Deploy the source of ${formatDate(at)}`, onclick: () => this._deployStored(agent, source) }, "Deploy"));
    });
    this._shown.replaceChildren(h("ul", {}, rows), newest.length > FEW && !this._showAll
      ? h("button", { type: "button", class: "quiet", onclick: () => { this._showAll = true; this.renderSources(agent); } }, `Show all ${newest.length}`) : "");
  }

  async _deployStored(agent, source) {
    const runs = agent.status === "deployed" ? " It replaces what runs now." : "";
    await openDialog({
      title: "Deploy this source?", action: "Deploy",
      content: [h("p", {}, `Uploaded ${formatDate(parseTime(source.uploaded))}, ${formatBytes(source.sizeBytes)}, `, h("code", {}, source.digest.slice(0, 10)), `.${runs}`)],
      act: () => this._app.act("deployTradingAgent", this._agentId, { sourceDigest: source.digest }),
    });
  }
}

const listSymbols = (symbols) => (symbols.length > 12 ? `${symbols.slice(0, 12).join(", ")} and ${symbols.length - 12} more` : symbols.join(", "));
