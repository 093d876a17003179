// A recorded session: which slice is shown, and why it did, or did not, trade then.

import { moment } from "./format.js";

const byId = (id) => document.getElementById(id);

export class Scrubber {
  constructor({ ask, take, choose, symbol, clear }) {
    Object.assign(this, { ask, take, choose, symbol, clear });
    this.outline = null;
    this.at = 0;
    this.wanted = null;
    this.isAsking = false;
    this.follows = false; // the symbol of the next answer's decision is to be shown
  }

  async start() {
    this.outline = await this.ask("api/session");
    const last = this.outline.turns.length - 1;
    byId("scrub").hidden = false;
    byId("h-scrub").textContent = this.outline.name;
    const slider = byId("scrub-at");
    slider.max = Math.max(0, last);
    slider.addEventListener("input", () => this.go(Number(slider.value)));
    byId("back-one").addEventListener("click", () => this.go(this.at - 1));
    byId("forth-one").addEventListener("click", () => this.go(this.at + 1));
    byId("back-mark").addEventListener("click", () => this.jump(this.marks().filter((at) => at < this.at).pop()));
    byId("forth-mark").addEventListener("click", () => this.jump(this.marks().find((at) => at > this.at)));
    new ResizeObserver(() => this.paint()).observe(byId("scrub-marks"));
    if (last >= 0 && this.marks().length) this.jump(this.marks()[0]);
    else if (last >= 0) this.go(last);
  }

  /** Go to a decision, and to the symbol that it is about. */
  jump(at) {
    if (at === undefined) return;
    this.follows = true;
    this.go(at);
  }

  marks() {
    return this.outline.marked || [];
  }

  go(at) {
    this.at = Math.max(0, Math.min(this.outline.turns.length - 1, at));
    byId("scrub-at").value = this.at;
    const text = moment(this.outline.times_ms[this.at]) + " UTC";
    byId("scrub-time").textContent = text;
    byId("scrub-at").setAttribute("aria-valuetext", text);
    byId("back-mark").disabled = !this.marks().some((mark) => mark < this.at);
    byId("forth-mark").disabled = !this.marks().some((mark) => mark > this.at);
    this.wanted = this.at;
    this.load();
  }

  reload() {
    this.wanted = this.at;
    this.load();
  }

  /** Ask for what is wanted; while an answer is under way only the newest wish is kept. */
  async load() {
    if (this.isAsking || this.wanted === null) return;
    this.isAsking = true;
    const turn = this.outline.turns[this.wanted], symbol = this.symbol();
    this.wanted = null;
    try {
      const found = await this.ask(`api/session/at?turn=${turn}&symbol=${encodeURIComponent(symbol)}`);
      this.clear();
      this.take(found.board);
      this.show(found);
      const symbols = found.decisions.map((decision) => decision.symbol).filter(Boolean);
      if (this.follows && symbols.length && !symbols.includes(symbol)) this.choose(symbols[0]);
      this.follows = false;
    } catch (error) {
      byId("answer").textContent = error.message;
    }
    this.isAsking = false;
    if (this.wanted === null && symbol !== this.symbol()) this.wanted = this.at; // it was chosen by the first answer
    this.load();
  }

  show(found) {
    byId("answer").textContent = found.answer;
    byId("decisions").replaceChildren(...found.decisions.map((decision) => {
      const item = document.createElement("li");
      item.dataset.verdict = decision.verdict;
      const what = document.createElement(decision.symbol ? "button" : "b");
      what.textContent = decision.what;
      if (decision.symbol) {
        what.type = "button";
        what.className = "plain";
        what.addEventListener("click", () => this.choose(decision.symbol));
      }
      item.append(what, " ");
      const parts = [["span", decision.verdict], ["span", decision.reason], ["span", decision.legs.join("; ")], ["span", decision.latency], ["code", decision.order]];
      for (const [tag, text] of parts) {
        if (!text) continue;
        const node = document.createElement(tag);
        node.textContent = text;
        item.append(node, " ");
      }
      return item;
    }), ...found.happened.map((text) => {
      const item = document.createElement("li");
      item.className = "happened";
      item.textContent = text;
      return item;
    }));
  }

  paint() {
    const canvas = byId("scrub-marks"), ratio = devicePixelRatio || 1;
    const width = canvas.clientWidth, height = canvas.clientHeight;
    canvas.width = width * ratio;
    canvas.height = height * ratio;
    const context = canvas.getContext("2d");
    context.scale(ratio, ratio);
    context.fillStyle = getComputedStyle(document.documentElement).getPropertyValue("--accent");
    const last = Math.max(1, this.outline.turns.length - 1);
    for (const at of this.marks()) context.fillRect(8 + (at / last) * (width - 16) - 0.75, 0, 1.5, height);
  }
}
