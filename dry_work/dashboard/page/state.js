// What the page knows of a run: kept from deltas. Pure, but for the clock that it is given.

const EQUITY_KEPT = 4000;
const ENDED_KEPT = 200;
const LINES_KEPT = 400;
const BARS_KEPT = 1500;
const LATE_BARS = 2.5;
const STALE_BARS = 15;

export class RunState {
  constructor() {
    this.clear();
  }

  clear() {
    this.cursor = "";
    this.head = null;
    this.pulse = null;
    this.rows = new Map();
    this.orders = new Map();
    this.log = [];
    this.equity = [];
    this.chart = null; // {symbol, lines, bars, marks}
    this.skew = 0; // of the server's clock against this one
  }

  /** Take what has changed; tell what it was: a set of names, and how many bars are new. */
  apply(delta) {
    const changed = new Set();
    if (delta.whole) {
      this.rows.clear();
      this.orders.clear();
      this.log = [];
      this.equity = [];
      this.chart = null;
      changed.add("symbols").add("orders").add("log").add("equity");
    }
    this.cursor = delta.cursor;
    if (delta.head) {
      this.head = delta.head;
      changed.add("head");
    }
    for (const row of delta.symbols || []) {
      this.rows.set(row.symbol, row);
      changed.add("symbols");
    }
    for (const order of delta.orders || []) {
      this.orders.delete(order.id);
      this.orders.set(order.id, order);
      changed.add("orders");
    }
    if (delta.orders) this.forget();
    if (delta.log && delta.log.length) {
      this.log = this.log.concat(delta.log).slice(-LINES_KEPT);
      changed.add("log");
    }
    if (delta.equity && delta.equity.length) {
      const last = this.equity.length ? this.equity[this.equity.length - 1][0] : -Infinity;
      for (const point of delta.equity) if (point[0] > last) this.equity.push(point);
      if (this.equity.length > EQUITY_KEPT) this.equity = this.equity.filter((_, at) => at % 2 === 0 || at === this.equity.length - 1);
      changed.add("equity");
    }
    let fresh = 0;
    if (delta.chart) fresh = this.draw(delta.chart, changed);
    return { changed, fresh };
  }

  draw(part, changed) {
    const known = this.chart;
    if (known && known.symbol === part.symbol && part.minutes !== known.minutes) {
      known.minutes = part.minutes;
      changed.add("minutes");
    }
    const goesOn = known && known.symbol === part.symbol && known.total === part.first && known.lines.length === part.lines.length;
    if (!goesOn && !part.bars.length && known && known.symbol === part.symbol && !part.marks.length) return 0;
    if (!goesOn) {
      this.chart = { symbol: part.symbol, lines: part.lines, bars: [...part.bars], marks: [...part.marks], total: part.total, minutes: part.minutes };
      changed.add("chart");
      return -1;
    }
    known.bars.push(...part.bars);
    if (known.bars.length > BARS_KEPT * 1.2) known.bars.splice(0, known.bars.length - BARS_KEPT);
    known.marks.push(...part.marks);
    known.total = part.total;
    if (part.bars.length || part.marks.length) changed.add("chart");
    if (part.marks.length) changed.add("marks");
    return part.bars.length;
  }

  forget() {
    let ended = 0;
    for (const order of this.orders.values()) ended += order.is_open ? 0 : 1;
    for (const [id, order] of this.orders) {
      if (ended <= ENDED_KEPT) break;
      if (order.is_open) continue;
      this.orders.delete(id);
      ended -= 1;
    }
  }

  /** The market's time by which ages are measured. */
  now(clockMs) {
    if (this.head && (this.head.run.own_time || this.head.phase === "recorded")) return this.head.market_ms;
    return clockMs + this.skew;
  }

  /** Return [state, age in ms] of a symbol's last bar against its session. */
  freshness(row, now) {
    if (!row.bar_ms) return ["waiting", null];
    const opened = this.pulse ? this.pulse.stocks_open_ms : undefined;
    if (!row.crypto && opened === null) return ["closed", now - row.bar_ms];
    if (row.paused) return ["paused", now - row.bar_ms];
    const since = row.crypto || !opened ? row.bar_ms : Math.max(row.bar_ms, opened);
    const bars = (now - since) / row.length_ms;
    return [bars >= STALE_BARS ? "stale" : bars >= LATE_BARS ? "late" : "fresh", now - row.bar_ms];
  }
}
