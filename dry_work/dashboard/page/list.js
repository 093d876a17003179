// The list of symbols: as many rows in the page as fit, whatever there are. A listbox for keyboard and screen reader.

import { age, duration, gain, price, quantity, tone } from "./format.js";

const ROW = 34; // height in CSS pixels, as page.css has it
const AROUND = 4; // rows beyond what is seen
const WORDS = { waiting: "no bar yet", paused: "halted by the exchange", closed: "closed", late: "late", stale: "stale", fresh: "" };
const COLUMNS = ["name", "last", "age", "delay wide", "held", "profit"];

export class SymbolList {
  constructor(node, { onChoose }) {
    this.node = node;
    this.onChoose = onChoose;
    this.rows = [];
    this.chosen = "";
    this.pool = [];
    this.space = document.createElement("div");
    this.space.className = "space";
    node.append(this.space);
    node.addEventListener("scroll", () => this.paint(), { passive: true });
    node.addEventListener("keydown", (event) => this.press(event));
    node.addEventListener("click", (event) => {
      const row = event.target.closest("[data-symbol]");
      if (row) this.onChoose(row.dataset.symbol);
    });
    new ResizeObserver(() => this.paint()).observe(node);
  }

  /** Show these rows in this order. freshness(row) returns [state, age]. */
  show(rows, chosen, freshness) {
    this.rows = rows;
    this.freshness = freshness;
    if (chosen !== this.chosen) {
      this.chosen = chosen;
      this.reveal();
    }
    this.space.style.height = rows.length * ROW + "px";
    this.node.style.setProperty("--rows", rows.length);
    this.paint();
  }

  reveal() {
    const at = this.rows.findIndex((row) => row.symbol === this.chosen);
    if (at < 0) return;
    const top = at * ROW, view = this.node;
    if (top < view.scrollTop) view.scrollTop = top;
    else if (top + ROW > view.scrollTop + view.clientHeight) view.scrollTop = top + ROW - view.clientHeight;
  }

  paint() {
    const first = Math.max(0, Math.floor(this.node.scrollTop / ROW) - AROUND);
    const count = Math.min(this.rows.length - first, Math.ceil(this.node.clientHeight / ROW) + 2 * AROUND);
    while (this.pool.length < count) this.pool.push(this.make());
    for (let i = 0; i < this.pool.length; i += 1) {
      const item = this.pool[i];
      if (i >= count) {
        item.node.hidden = true;
        continue;
      }
      this.fill(item, this.rows[first + i], first + i);
    }
    const row = this.rows.findIndex((each) => each.symbol === this.chosen);
    const visible = row >= first && row < first + count;
    if (visible) this.node.setAttribute("aria-activedescendant", this.pool[row - first].node.id);
    else this.node.removeAttribute("aria-activedescendant");
  }

  make() {
    const node = document.createElement("div");
    node.className = "symbol";
    node.id = "symbol-" + this.pool.length;
    node.setAttribute("role", "option");
    const cells = COLUMNS.map((name) => {
      const cell = document.createElement("span");
      cell.className = name;
      node.append(cell);
      return cell;
    });
    this.space.append(node);
    return { node, cells, texts: [], key: "" };
  }

  fill(item, row, at) {
    const { node, cells, texts } = item;
    const [state, old] = this.freshness(row);
    const chosen = row.symbol === this.chosen;
    const shown = [
      row.symbol + (row.halted ? " ⛔" : "") + (row.paused ? " ⏸" : ""),
      price(row.close),
      state === "closed" ? "closed" : old === null ? "–" : (state === "stale" ? "! " : "") + age(old),
      duration(row.delay_ms),
      row.position ? quantity(row.position, 5) : "",
      row.position ? gain(row.profit) : "",
    ];
    shown.forEach((text, i) => {
      if (texts[i] !== text) cells[i].textContent = texts[i] = text;
    });
    const key = [at, row.symbol, chosen, state, tone(row.position ? row.profit : 0), this.rows.length, row.halted, row.paused].join("|");
    if (key === item.key) return;
    item.key = key;
    node.hidden = false;
    node.style.transform = "translateY(" + at * ROW + "px)";
    node.dataset.symbol = row.symbol;
    node.dataset.state = state;
    node.title = [WORDS[state], row.paused, row.halted].filter(Boolean).join("; ");
    cells[5].className = "profit " + tone(row.position ? row.profit : 0);
    node.setAttribute("aria-selected", String(chosen));
    node.setAttribute("aria-setsize", String(this.rows.length));
    node.setAttribute("aria-posinset", String(at + 1));
  }

  press(event) {
    if (event.ctrlKey || event.metaKey || event.altKey || !this.rows.length) return;
    const page = Math.max(1, Math.floor(this.node.clientHeight / ROW) - 1);
    const steps = { ArrowDown: 1, ArrowUp: -1, PageDown: page, PageUp: -page, Home: -Infinity, End: Infinity };
    if (!(event.key in steps)) return;
    event.preventDefault();
    const at = this.rows.findIndex((row) => row.symbol === this.chosen);
    const to = Math.max(0, Math.min(this.rows.length - 1, at + steps[event.key]));
    this.onChoose(this.rows[to].symbol);
  }
}
