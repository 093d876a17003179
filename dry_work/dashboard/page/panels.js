// Tiles, tables and the log: built anew when what they show has changed, cell by cell.

import { clock, duration, gain, megabytes, moment, number, price, quantity, tone } from "./format.js";

const byId = (id) => document.getElementById(id);

function set(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

function element(tag, className, text) {
  const node = document.createElement(tag);
  if (className) node.className = className;
  if (text !== undefined) node.textContent = text;
  return node;
}

/** Show [name, value, tone, note] pairs in a list of terms, keeping its nodes. */
export function showTerms(list, pairs) {
  while (list.children.length > pairs.length) list.lastChild.remove();
  pairs.forEach(([name, value, colour = "", note = ""], at) => {
    let row = list.children[at];
    if (!row) {
      row = element("div");
      row.append(element("dt"), element("dd"), element("dd", "sub"));
      list.append(row);
    }
    set(row.children[0], name);
    set(row.children[1], value);
    row.children[1].className = colour;
    set(row.children[2], note);
  });
}

/** A table whose rows are known by a key; only what has changed is written. */
export class Table {
  constructor(holder, columns, { empty, onChoose = null }) {
    this.holder = holder;
    this.columns = columns;
    this.onChoose = onChoose;
    this.empty = element("p", "hint", empty);
    this.table = element("table");
    const head = element("tr");
    for (const { name, left } of columns) {
      const cell = element("th", left ? "left" : "", name);
      cell.scope = "col";
      head.append(cell);
    }
    const top = element("thead");
    top.append(head);
    this.body = element("tbody");
    this.table.append(top, this.body);
    holder.append(this.empty, this.table);
    this.rows = new Map();
  }

  /** items: [key, values]; a value is a text or [text, class]. */
  show(items) {
    this.empty.hidden = items.length > 0;
    this.table.hidden = !items.length;
    const seen = new Set();
    let before = null;
    for (const [key, values] of items) {
      seen.add(key);
      let row = this.rows.get(key);
      if (!row) {
        row = element("tr");
        this.columns.forEach(({ name, left }) => {
          const cell = element("td", left ? "left" : "");
          cell.dataset.label = name;
          row.append(cell);
        });
        this.rows.set(key, row);
      }
      values.forEach((value, at) => {
        const [text, colour] = Array.isArray(value) ? value : [value, ""];
        const cell = row.children[at];
        if (this.columns[at].link && this.onChoose) {
          if (!cell.firstChild) {
            const button = element("button", "plain", text);
            button.type = "button";
            button.addEventListener("click", () => this.onChoose(button.textContent));
            cell.append(button);
          } else set(cell.firstChild, text);
        } else set(cell, text);
        const className = ((this.columns[at].left ? "left " : "") + colour).trim();
        if (cell.className !== className) cell.className = className;
      });
      const place = before ? before.nextSibling : this.body.firstChild;
      if (place !== row) this.body.insertBefore(row, place);
      before = row;
    }
    for (const [key, row] of this.rows) {
      if (seen.has(key)) continue;
      row.remove();
      this.rows.delete(key);
    }
  }
}

export function showTiles(head) {
  const account = head.account;
  if (!account) {
    showTerms(byId("tiles"), [["open orders", String(head.open_orders)], ["orders", number(head.orders, 0)], ["fills", number(head.fills, 0)]]);
    return;
  }
  const day = account.equity - account.day_equity, total = account.equity - account.start_equity;
  const share = (value, of) => (of ? gain((value / of) * 100) + " %" : "");
  showTerms(byId("tiles"), [
    ["equity", number(account.equity)],
    ["day", gain(day), tone(day), share(day, account.day_equity)],
    ["this run", gain(total), tone(total), share(total, account.start_equity)],
    ["realised", gain(account.realised), tone(account.realised)],
    ["cash", number(account.cash)],
    ["gross", number(account.gross), "", account.equity > 0 ? number((account.gross / account.equity) * 100, 0) + " %" : ""],
    ["orders", number(head.orders, 0), "", head.open_orders + " open"],
    ["fills", number(head.fills, 0)],
  ]);
}

export function showLimits(risk) {
  const holder = byId("limits");
  if (!risk.limits.length) {
    holder.replaceChildren(element("p", "hint", risk.state === "off" ? "The risk gate is off." : "What is used is known while the run shows it."));
    return;
  }
  while (holder.children.length > risk.limits.length || (holder.firstChild && holder.firstChild.tagName === "P")) holder.lastChild.remove();
  risk.limits.forEach((limit, at) => {
    let row = holder.children[at];
    if (!row) {
      row = element("div", "limit");
      const meter = element("meter");
      meter.min = 0;
      meter.max = 1;
      meter.high = 0.8;
      meter.optimum = 0;
      row.append(element("span", "what"), meter, element("span", "used"));
      holder.append(row);
    }
    const share = limit.allowed > 0 ? limit.used / limit.allowed : limit.used > 0 ? 1 : 0;
    const decimals = limit.unit === "count" ? 0 : 0;
    set(row.children[0], limit.name);
    row.children[1].value = Math.min(1, share);
    row.children[1].setAttribute("aria-label", limit.name);
    set(row.children[2], `${number(limit.used, decimals)} of ${number(limit.allowed, decimals)}`);
  });
}

let latencyTable = null;
export function showLatency(head) {
  latencyTable ||= new Table(byId("latency"), [{ name: "stage", left: true }, { name: "last" }, { name: "p50" }, { name: "p99" }, { name: "count" }], { empty: "Nothing was measured yet." });
  latencyTable.show((head.latency || []).map((each) => [each.stage, [each.stage, duration(each.last_ms), duration(each.p50_ms), duration(each.p99_ms), number(each.count, 0)]]));
}

let orderTable = null;
export function showOrders(orders, onlyOpen, onChoose) {
  orderTable ||= new Table(byId("orders"), [
    { name: "time", left: true }, { name: "symbol", left: true, link: true }, { name: "order", left: true }, { name: "quantity" }, { name: "filled" }, { name: "price" },
    { name: "status", left: true }, { name: "acknowledged" }, { name: "id", left: true },
  ], { empty: "No orders.", onChoose });
  const all = [...orders.values()].filter((order) => order.is_open || !onlyOpen);
  const list = arrange(all);
  set(byId("order-count"), all.length ? `${all.filter((order) => order.is_open).length} open, ${all.length} shown` : "");
  orderTable.show(list.map(([order, isLeg]) => {
    const terms = [order.limit !== null ? "limit " + price(order.limit) : "", order.stop !== null ? "stop " + price(order.stop) : ""].filter(Boolean).join(", ");
    const what = `${isLeg ? "└ " : ""}${order.side} ${order.type.replaceAll("_", " ")}`;
    const bad = order.status === "rejected" || order.status === "margin";
    return [order.id, [
      clock(order.placed_ms), order.symbol, [what + (terms ? " · " + terms : ""), order.side], quantity(order.qty), order.filled ? quantity(order.filled) : "–",
      order.filled ? price(order.price) : "–", [order.status + (order.reason ? ": " + order.reason : ""), bad ? "loss wrap" : order.is_open ? "open" : ""],
      duration(order.ack_ms), [order.id, "id"],
    ]];
  }));
}

/** Return [order, whether it is a leg], the newest first, legs behind their entry. */
export function arrange(orders) {
  const ids = new Set(orders.map((order) => order.id));
  const legs = new Map();
  const heads = [];
  for (const order of orders) {
    if (order.parent && ids.has(order.parent)) legs.set(order.parent, [...(legs.get(order.parent) || []), order]);
    else heads.push(order);
  }
  heads.sort((a, b) => b.is_open - a.is_open || b.placed_ms - a.placed_ms || (a.id < b.id ? 1 : -1));
  return heads.flatMap((order) => [[order, false], ...(legs.get(order.id) || []).map((leg) => [leg, true])]);
}

let positionTable = null;
export function showPositions(rows, onChoose) {
  positionTable ||= new Table(byId("positions"), [{ name: "symbol", left: true, link: true }, { name: "quantity" }, { name: "entry" }, { name: "last" }, { name: "P&L" }, { name: "realised" }],
    { empty: "Nothing is held.", onChoose });
  const held = [...rows.values()].filter((row) => row.position);
  set(byId("position-count"), held.length ? String(held.length) : "");
  positionTable.show(held.map((row) => [row.symbol, [
    row.symbol, quantity(row.position), price(row.price), price(row.close), [gain(row.profit), tone(row.profit)], [gain(row.realised), tone(row.realised)],
  ]]));
}

export function showLog(lines) {
  const holder = byId("log");
  const isAtEnd = holder.scrollTop + holder.clientHeight >= holder.scrollHeight - 24;
  holder.replaceChildren(...lines.map(([ms, level, text]) => {
    const line = element("div", "line");
    line.dataset.level = level;
    const time = element("time", "", clock(ms));
    time.title = moment(ms) + " UTC";
    line.append(time, element("span", "", text));
    return line;
  }));
  if (isAtEnd) holder.scrollTop = holder.scrollHeight;
}

export function showFacts(head) {
  const run = head.run;
  showTerms(byId("facts"), [
    ["agent", run.agent], ["parameters", run.params.map(([name, value]) => `${name}=${value}`).join(", ") || "none"],
    ["id", run.agent_id || "–"], ["session", run.session || "–"], ["mode", run.mode + (run.lockstep ? ", lock-step" : "")],
    ["started", moment(run.started_ms)], ["runs before", number(run.restarts, 0)], ["slices", number(head.slices, 0)],
    ["bars", number(head.bars, 0) + (head.late_bars ? `, ${number(head.late_bars, 0)} late` : "")], ["market data", (head.feed || "none yet") + (head.feed_detail ? ": " + head.feed_detail : "")],
    ["memory", megabytes(head.memory_bytes)],
  ]);
}
