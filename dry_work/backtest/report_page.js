"use strict";
// Draws the charts and the table of a report from the numbers in the page. Loads nothing, keeps nothing.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const byId = (id) => document.getElementById(id);
  const SVG = "http://www.w3.org/2000/svg";
  const MINUTE = 60e3, HOUR = 60 * MINUTE, DAY = 24 * HOUR;
  const MONTHS = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
  const two = (value) => String(value).padStart(2, "0");

  // Numbers and times

  const formats = new Map();
  function number(value, decimals, least = decimals) {
    if (value === null || value === undefined) return "–";
    const key = decimals * 100 + least;
    if (!formats.has(key)) {
      formats.set(key, new Intl.NumberFormat("en-US", { maximumFractionDigits: decimals, minimumFractionDigits: least }));
    }
    return formats.get(key).format(value).replace(/^-(?=0(\.0*)?$)/, "").replace("-", "−");
  }
  /** Return the text of a tick; from a million on in millions or more, with the decimals that the steps need. */
  function tickText(value, decimals, step, top) {
    if (top < 1e6) return number(value, decimals);
    const [unit, name] = [[1e12, "T"], [1e9, "B"], [1e6, "M"]].find(([each]) => top >= each);
    return value === 0 ? "0" : number(value / unit, Math.max(0, Math.ceil(Math.log10(unit / step) - 1e-9)), 0) + name;
  }
  const signed = (value, decimals) => (value > 0 ? "+" : "") + number(value, decimals);
  const percent = (value, decimals = 2) => (value === null || value === undefined ? "–" : number(value * 100, decimals) + " %");
  const clock = (date) => two(date.getUTCHours()) + ":" + two(date.getUTCMinutes());
  const day = (date) => date.getUTCDate() + " " + MONTHS[date.getUTCMonth()];
  function moment(ms) {
    const date = new Date(ms);
    const seconds = ms % MINUTE ? ":" + two(date.getUTCSeconds()) : "";
    return day(date) + " " + date.getUTCFullYear() + ", " + clock(date) + seconds;
  }
  function minute(ms) {
    const date = new Date(ms);
    return date.getUTCFullYear() + "-" + two(date.getUTCMonth() + 1) + "-" + two(date.getUTCDate()) + " " + clock(date);
  }
  function length(ms) {
    if (ms === null) return "–";
    if (ms < MINUTE) return Math.round(ms / 1e3) + " s";
    if (ms < HOUR) return Math.round(ms / MINUTE) + " min";
    if (ms < DAY) return Math.floor(ms / HOUR) + " h " + Math.floor((ms % HOUR) / MINUTE) + " min";
    return number(ms / DAY, ms < 100 * DAY ? 1 : 0) + " d";
  }

  // Times of slices. A chart's horizontal axis counts slices: hours without bars take no room.

  const times = [];
  if (data.slices) {
    let at = data.times.first;
    times.push(at);
    for (const steps of data.times.steps) times.push((at += steps * data.times.unit));
  }
  const timeStep = data.slices ? data.times.step : 1;
  const timeAt = (slice) => times[Math.max(0, Math.min(times.length - 1, Math.floor(slice / timeStep)))];

  const LEVELS = [
    ...[10, 5, 2, 1].map((years) => (d) => Math.floor(d.getUTCFullYear() / years)),
    (d) => d.getUTCFullYear() * 4 + Math.floor(d.getUTCMonth() / 3),
    (d) => d.getUTCFullYear() * 12 + d.getUTCMonth(),
    (d) => Math.floor((d.getTime() / DAY + 3) / 7),
    ...[24 * 60, 12 * 60, 6 * 60, 3 * 60, 60, 30, 15, 5, 1].map((m) => (d) => Math.floor(d.getTime() / (m * MINUTE))),
  ];
  const DAYS = 6; // from this level on a tick is a day or a time of day, before it a month or a year
  // When the bars of a bucket began; without a pause that is when the bucket before ended.
  const beginning = (i) => new Date(Math.max(i ? times[i - 1] : -Infinity, times[i] - data.times.length * timeStep));
  function timeTicks(period, width) {
    const low = Math.max(0, Math.floor(period.from / timeStep));
    const high = Math.min(times.length - 1, Math.ceil(period.to / timeStep));
    const scale = (width / (period.to - period.from)) * timeStep;
    const room = Math.max(2, Math.floor(width / 84));
    let found = [], depth = 0;
    for (const level of LEVELS) {
      const ticks = [];
      let before = level(beginning(low));
      for (let i = low + 1; i <= high && ticks.length <= room; i += 1) {
        const key = level(beginning(i));
        if (key !== before) ticks.push(i);
        before = key;
      }
      if (ticks.length > room) break;
      found = ticks;
      depth = LEVELS.indexOf(level);
      if (ticks.length >= room / 2) break;
    }
    const year = (date) => day(date) + " " + date.getUTCFullYear();
    const made = [{ slice: period.from, text: year(beginning(low)), edge: true }];
    let last = beginning(low), end = 88;
    for (const i of found) {
      const x = (i - period.from / timeStep) * scale, date = beginning(i);
      const isDay = Math.floor(date / DAY) !== Math.floor(last / DAY);
      const isYear = date.getUTCFullYear() !== last.getUTCFullYear();
      const half = isYear && depth >= DAYS ? 38 : 20;
      const name = depth >= DAYS ? (isYear ? year(date) : isDay ? day(date) : clock(date)) : isYear ? String(date.getUTCFullYear()) : MONTHS[date.getUTCMonth()];
      const text = x - half < end ? "" : name;
      if (text) {
        last = date;
        end = x + half + 8;
      }
      made.push({ slice: i * timeStep, text });
    }
    return made;
  }

  // Drawing

  function draw(parent, tag, attributes, text) {
    const node = document.createElementNS(SVG, tag);
    for (const name in attributes) node.setAttribute(name, attributes[name]);
    if (text !== undefined) node.textContent = text;
    parent.append(node);
    return node;
  }

  /** Return a series of a chart as columns at least one pixel wide: [x of the left, x of the right, low, high, last, first]. */
  function columns(series, view, width) {
    const scale = width / (view.to - view.from);
    const { step, last } = series;
    const low = series.low || last, high = series.high || last, open = series.open || last;
    const group = Math.max(1, Math.ceil(1 / (step * scale)));
    const found = [];
    let i = Math.max(0, Math.floor(view.from / step / group) - 1) * group;
    const end = Math.min(last.length, Math.ceil(view.to / step) + group);
    for (; i < end; i += group) {
      let least = Infinity, most = -Infinity, value = null, first = null;
      for (let j = i; j < i + group && j < last.length; j += 1) {
        if (last[j] === null) continue;
        if (low[j] < least) least = low[j];
        if (high[j] > most) most = high[j];
        if (first === null) first = open[j];
        value = last[j];
      }
      const left = (i * step - view.from) * scale;
      found.push([left, Math.min(i + group, data.slices / step) * step * scale - view.from * scale, least, most, value, first]);
    }
    return found;
  }
  const point = (x, y) => x.toFixed(1) + " " + y.toFixed(1);

  function linePath(found, y) {
    let path = "", pen = "M";
    for (const [left, right, least, most, value] of found) {
      if (value === null) continue; // a pause in trading is bridged
      const x = (left + right) / 2;
      if (least !== most) path += pen + point(x, y(least)) + "L" + point(x, y(most)) + "L" + point(x, y(value));
      else path += pen + point(x, y(value));
      pen = "L";
    }
    return path;
  }
  // Columns that each go up and down make a band rather than a line.
  const dense = (found) => (found.length > 1 && found[1][1] - found[1][0] < 2 ? " dense" : "");
  function stepArea(found, y, pick) {
    const base = y(0);
    let path = "", open = false;
    for (const column of found) {
      if (column[4] === null) {
        if (open) path += "V" + base.toFixed(1) + "Z";
        open = false;
        continue;
      }
      if (!open) path += "M" + point(column[0], base);
      path += "V" + y(column[pick]).toFixed(1) + "H" + column[1].toFixed(1);
      open = true;
    }
    return open ? path + "V" + base.toFixed(1) + "Z" : path;
  }
  function rangeArea(found, y) {
    let path = "";
    for (const [left, right, least, most, value] of found) {
      if (value !== null) path += "M" + point(left, y(most)) + "H" + right.toFixed(1) + "V" + (y(least) + 0.6).toFixed(1) + "H" + left.toFixed(1) + "Z";
    }
    return path;
  }
  function extent(list) {
    let low = Infinity, high = -Infinity;
    for (const found of list) {
      for (const column of found) {
        if (column[4] === null) continue;
        low = Math.min(low, column[2]);
        high = Math.max(high, column[3]);
      }
    }
    return low <= high ? [low, high] : [0, 1];
  }
  function valueTicks(low, high, count) {
    const raw = (high - low) / count;
    const power = 10 ** Math.floor(Math.log10(raw));
    const step = [1, 2, 2.5, 5, 10].map((each) => each * power).find((each) => each >= raw) || power * 10;
    const ticks = [];
    for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i += 1) ticks.push(i * step);
    if (ticks.length < 2 && count < 12) return valueTicks(low, high, count * 2);
    const decimals = Math.max(0, -Math.floor(Math.log10(step) + 1e-9) + (String(step / power).startsWith("2.5") ? 1 : 0));
    return { ticks, decimals, step };
  }

  // The period that all charts show, and the slice under the pointer

  const all = { from: 0, to: Math.max(1, data.slices) };
  const view = { ...all };
  const charts = [];
  let cursor = null, queued = false;
  function redraw() {
    if (queued) return;
    queued = true;
    requestAnimationFrame(() => {
      queued = false;
      for (const chart of charts) chart.draw();
      for (const button of document.querySelectorAll("[data-zoom]")) {
        const whole = view.from <= all.from && view.to >= all.to;
        if (button.dataset.zoom !== "in") button.disabled = whole;
      }
    });
  }
  function show(from, to) {
    const least = Math.min(all.to, 6 * Math.max(timeStep, data.prices.length ? data.prices[chosen].step : 1));
    let span = Math.min(all.to, Math.max(least, to - from));
    let start = (from + to) / 2 - span / 2;
    start = Math.max(0, Math.min(all.to - span, start));
    view.from = start;
    view.to = start + span;
    redraw();
  }
  const move = (share) => show(view.from + share * (view.to - view.from), view.to + share * (view.to - view.from));
  function zoom(factor, at = (view.from + view.to) / 2) {
    show(at - (at - view.from) * factor, at + (view.to - at) * factor);
  }
  function point_at(slice) {
    cursor = slice === null ? null : Math.max(view.from, Math.min(Math.min(view.to, all.to) - 1e-6, slice));
    for (const chart of charts) chart.follow();
  }

  const MARGIN = { top: 8, right: 64, bottom: 22 };
  class Chart {
    constructor(id, { height = 5, axis = true, text, prepare, paint, read, zero = false }) {
      this.node = byId(id);
      this.readout = byId(id + "-readout");
      Object.assign(this, { ticks: height, axis, text, prepare, paint, read, zero });
      charts.push(this);
      this.listen();
      new ResizeObserver(redraw).observe(this.node);
    }
    draw() {
      const outer = this.node.clientWidth, tall = this.node.clientHeight;
      const width = (this.width = Math.max(40, outer - MARGIN.right));
      const bottom = tall - (this.axis ? MARGIN.bottom : 6);
      const svg = document.createElementNS(SVG, "svg");
      svg.setAttribute("viewBox", "0 0 " + outer + " " + tall);
      svg.setAttribute("aria-hidden", "true");
      const parts = this.prepare(view, width);
      let [low, high] = parts.extent;
      const pad = (high - low || Math.abs(high) * 0.01 || 1) * (parts.pad ?? 0.06);
      if (!this.zero || low < 0) low -= this.zero && low >= 0 ? 0 : pad;
      if (!this.zero || high > 0) high += pad;
      const y = (value) => MARGIN.top + ((high - value) / (high - low)) * (bottom - MARGIN.top);
      const x = (slice) => ((slice - view.from) / (view.to - view.from)) * width;
      const { ticks, decimals, step } = valueTicks(low, high, this.ticks);
      for (const tick of ticks) {
        const at = Math.round(y(tick)) + 0.5;
        draw(svg, "line", { class: this.zero && tick === 0 ? "zero" : "grid", x1: 0, x2: width, y1: at, y2: at });
        draw(svg, "text", { x: width + 6, y: Math.min(tall - 2, at + 3.5) }, this.text(tick, decimals, step, Math.max(Math.abs(low), Math.abs(high))));
      }
      for (const { slice, text, edge } of timeTicks(view, width)) {
        const at = Math.round(x(slice)) + 0.5;
        if (!edge) draw(svg, "line", { class: "grid", x1: at, x2: at, y1: 0, y2: bottom });
        if (this.axis && at < outer - 34) draw(svg, "text", { x: at, y: tall - 6, "text-anchor": edge ? "start" : "middle" }, text);
      }
      const clip = draw(svg, "svg", { x: 0, y: 0, width, height: bottom, viewBox: "0 0 " + width + " " + bottom });
      this.paint(clip, parts, x, y, width);
      this.selection = draw(svg, "rect", { class: "picked", x: 0, y: 0, width: 0, height: bottom });
      this.line = draw(svg, "line", { class: "cursor", y1: 0, y2: bottom, visibility: "hidden" });
      this.node.replaceChildren(svg);
      this.follow();
    }
    follow() {
      if (!this.line) return;
      const visible = cursor !== null;
      if (visible) {
        const at = ((Math.floor(cursor) + 0.5 - view.from) / (view.to - view.from)) * this.width;
        this.line.setAttribute("x1", at);
        this.line.setAttribute("x2", at);
      }
      this.line.setAttribute("visibility", visible ? "visible" : "hidden");
      const slice = Math.floor(visible ? cursor : Math.min(view.to, all.to) - 1e-6);
      this.readout.replaceChildren(...this.read(slice, visible));
    }
    sliceAt(event) {
      const box = this.node.getBoundingClientRect();
      const share = Math.max(0, Math.min(1, (event.clientX - box.left) / this.width));
      return view.from + share * (view.to - view.from);
    }
    listen() {
      const node = this.node, fingers = new Map();
      let begun = null;
      node.addEventListener("pointerdown", (event) => {
        if (event.pointerType === "mouse" && event.button !== 0) return;
        fingers.set(event.pointerId, event);
        if (fingers.size === 1) begun = { slice: this.sliceAt(event), x: event.clientX, mouse: event.pointerType === "mouse" };
        if (begun.mouse) node.setPointerCapture(event.pointerId);
        if (fingers.size === 2) begun.pinch = [...fingers.values()].map((each) => this.sliceAt(each));
        point_at(this.sliceAt(event));
      });
      node.addEventListener("pointermove", (event) => {
        if (fingers.has(event.pointerId)) fingers.set(event.pointerId, event);
        if (begun && begun.pinch && fingers.size === 2) {
          // The two slices that were touched stay under their fingers.
          const box = node.getBoundingClientRect();
          const [a, b] = [...fingers.values()].map((each) => each.clientX - box.left);
          const [p, q] = begun.pinch;
          const perPixel = (q - p) / (b - a);
          if (Number.isFinite(perPixel) && perPixel > 0) show(p - a * perPixel, p + (this.width - a) * perPixel);
          return;
        }
        const slice = this.sliceAt(event);
        point_at(slice);
        if (begun && begun.mouse) {
          const scale = this.width / (view.to - view.from);
          const from = Math.min(begun.slice, slice), to = Math.max(begun.slice, slice);
          this.selection.setAttribute("x", (from - view.from) * scale);
          this.selection.setAttribute("width", (to - from) * scale);
        }
      });
      const release = (event) => {
        fingers.delete(event.pointerId);
        if (begun && begun.mouse && event.type === "pointerup" && Math.abs(event.clientX - begun.x) > 6) {
          const slice = this.sliceAt(event);
          show(Math.min(begun.slice, slice), Math.max(begun.slice, slice));
        }
        if (begun && this.selection) this.selection.setAttribute("width", 0);
        if (!fingers.size) begun = null;
      };
      node.addEventListener("pointerup", release);
      node.addEventListener("pointercancel", release);
      node.addEventListener("pointerleave", (event) => {
        if (event.pointerType === "mouse" && !begun) point_at(null);
      });
      node.addEventListener("dblclick", () => show(all.from, all.to));
      node.addEventListener("wheel", (event) => {
        if (event.ctrlKey || event.altKey) zoom(Math.exp(event.deltaY * 0.01), this.sliceAt(event));
        else if (Math.abs(event.deltaX) > Math.abs(event.deltaY)) move(event.deltaX / this.width);
        else return;
        event.preventDefault();
      }, { passive: false });
      node.addEventListener("keydown", (event) => {
        const stride = Math.max(1, (view.to - view.from) / (event.shiftKey ? 10 : 200));
        const at = cursor ?? (view.from + view.to) / 2;
        const keys = {
          ArrowLeft: () => point_at(at - stride), ArrowRight: () => point_at(at + stride), Escape: () => point_at(null),
          "+": () => zoom(0.5, at), "=": () => zoom(0.5, at), "-": () => zoom(2, at), 0: () => show(all.from, all.to),
        };
        if (!keys[event.key] || event.ctrlKey || event.metaKey) return;
        event.preventDefault();
        keys[event.key]();
      });
      node.addEventListener("blur", () => point_at(null));
    }
  }

  const at = (series, slice) => series.last[Math.min(series.last.length - 1, Math.floor(slice / series.step))];
  function item(text, value, mark) {
    const node = document.createElement("span");
    if (mark) {
      const key = document.createElement("i");
      key.className = mark;
      node.append(key);
    }
    if (text) node.append(text + " ");
    const strong = document.createElement("b");
    strong.textContent = value;
    node.append(strong);
    return node;
  }
  const when = (slice, visible) => (visible ? [item("", moment(timeAt(slice)) + " UTC")] : []);

  // Account value, drawdown, exposure

  let chosen = 0;
  if (data.slices) {
    const { equity, basket, drawdown, long, short } = data;
    new Chart("chart-equity", {
      axis: false,
      text: tickText,
      prepare(period, width) {
        const found = [columns(basket, period, width), columns(equity, period, width)];
        return { found, extent: extent(found) };
      },
      paint(svg, { found }, x, y) {
        draw(svg, "path", { class: "line s-basket" + dense(found[0]), d: linePath(found[0], y) });
        draw(svg, "path", { class: "line s-agent" + dense(found[1]), d: linePath(found[1], y) });
      },
      read: (slice, visible) => [
        ...when(slice, visible),
        item("agent", number(at(equity, slice), 2), "key-line s-agent"),
        item("buy and hold", number(at(basket, slice), 2), "key-line s-basket"),
      ],
    });
    new Chart("chart-drawdown", {
      height: 3, axis: false, zero: true,
      text: (value, decimals) => number(value * 100, Math.max(0, decimals - 2), 0) + " %",
      prepare(period, width) {
        const found = columns(drawdown, period, width);
        return { found, extent: [Math.min(extent([found])[0], -1e-3), 0] };
      },
      paint(svg, { found }, x, y) {
        draw(svg, "path", { class: "f-fall", d: stepArea(found, y, 2) });
        draw(svg, "path", { class: "line s-fall", d: linePath(found.map((c) => [c[0], c[1], c[2], c[2], c[4] === null ? null : c[2]]), y) });
      },
      read: (slice) => [item("", percent(at(drawdown, slice)), "key-area f-fall")],
    });
    const isShort = short.last.some((value) => value < 0) || (short.low || []).some((value) => value < 0);
    new Chart("chart-exposure", {
      height: 3, zero: true,
      text: (value, decimals) => number(value * 100, Math.max(0, decimals - 2), 0) + " %",
      prepare(period, width) {
        const found = [columns(long, period, width), columns(short, period, width)];
        return { found, extent: [extent([found[1]])[0] < 0 ? extent([found[1]])[0] : 0, Math.max(extent([found[0]])[1], isShort ? 0 : 1e-3)] };
      },
      paint(svg, { found }, x, y) {
        draw(svg, "path", { class: "f-long", d: stepArea(found[0], y, 3) });
        draw(svg, "path", { class: "f-short", d: stepArea(found[1], y, 2) });
      },
      read: (slice) => [
        item("long", percent(at(long, slice), 1), "key-area f-long"),
        ...(isShort ? [item("short", percent(at(short, slice), 1), "key-area f-short")] : []),
      ],
    });
  }

  // Prices with entries and exits

  const TRADE = { number: 0, symbol: 1, direction: 2, entered: 3, left: 4, from: 5, to: 6, qty: 7, open: 8, entry: 9, exit: 10, cost: 11, pnl: 12, share: 13, unrealised: 14 };
  const symbolOf = (row) => (typeof row[TRADE.symbol] === "number" ? data.symbols[row[TRADE.symbol]] : row[TRADE.symbol]);
  const rows = data.trades || [];
  if (data.prices.length) {
    const series = data.prices.map((price) => ({ ...price, last: price.close }));
    const tradesOf = series.map((price) => rows.filter((row) => symbolOf(row) === price.symbol));
    const select = byId("symbol");
    const chart = new Chart("chart-price", {
      text: tickText,
      prepare(period, width) {
        const found = columns(series[chosen], period, width);
        const visible = data.executions[chosen].filter((row) => row[0] >= period.from - 1 && row[0] <= period.to);
        let [low, high] = extent([found]);
        for (const row of visible) {
          low = Math.min(low, row[3]);
          high = Math.max(high, row[3]);
        }
        return { found, visible, extent: [low, high], pad: visible.length > Math.max(120, width / 3) ? 0.14 : 0.08 };
      },
      paint(svg, { found, visible }, x, y, width) {
        const wide = found.length > 1 ? found[1][1] - found[1][0] : width;
        if (wide >= 4) {
          const paths = { up: "", down: "" };
          const body = Math.max(1, Math.min(11, wide * 0.66));
          for (const [left, right, least, most, value, first] of found) {
            if (value === null) continue;
            const middle = Math.round((left + right) / 2) + 0.5;
            const top = y(Math.max(first, value)), bottom = Math.max(top + 1, y(Math.min(first, value)));
            paths[value >= first ? "up" : "down"] +=
              "M" + point(middle, y(most)) + "V" + y(least).toFixed(1) +
              "M" + point(middle - body / 2, top) + "h" + body.toFixed(1) + "V" + bottom.toFixed(1) + "h" + (-body).toFixed(1) + "Z";
          }
          for (const name in paths) draw(svg, "path", { class: name, d: paths[name] });
        } else {
          draw(svg, "path", { class: "f-range", d: rangeArea(found, y) });
          draw(svg, "path", { class: "line s-close", d: linePath(found.map((c) => [c[0], c[1], c[4], c[4], c[4]]), y) });
        }
        const shown = tradesOf[chosen].filter((row) => row[TRADE.to] >= view.from && row[TRADE.from] <= view.to);
        if (shown.length <= 120) {
          const ties = { up: "", down: "" };
          for (const row of shown) {
            if (row[TRADE.left] === null || row[TRADE.exit] === null) continue;
            ties[row[TRADE.pnl] >= 0 ? "up" : "down"] +=
              "M" + point(x(row[TRADE.from] + 0.5), y(row[TRADE.entry])) + "L" + point(x(row[TRADE.to] + 0.5), y(row[TRADE.exit]));
          }
          for (const name in ties) draw(svg, "path", { class: "tie " + name, d: ties[name] });
        }
        if (visible.length > Math.max(120, width / 3)) crowd(svg, visible, x, width);
        else marks(svg, visible, x, y);
      },
      read(slice, visible) {
        const price = series[chosen];
        const i = Math.min(price.close.length - 1, Math.floor(slice / price.step));
        const value = (name) => number(price[name][i], price.decimals);
        if (!visible) return legend(price);
        return [
          ...when(slice, visible), item("open", value("open")), item("high", value("high")),
          item("low", value("low")), item("close", value("close")),
        ];
      },
    });
    const marks = (svg, visible, x, y) => {
      // Where several fills of a kind meet, one mark stands for them.
      const size = visible.length > 150 ? 3.6 : visible.length > 40 ? 4.4 : 6;
      const bins = new Map();
      for (const row of visible) bins.set(Math.round(x(row[0] + 0.5) / size) + "/" + row[1] + row[2] + "/" + Math.round(y(row[3]) / size), row);
      const paths = {};
      for (const [slice, isBuy, isEntry, price] of bins.values()) {
        const sign = isBuy ? 1 : -1, middle = x(slice + 0.5), tip = y(price) + sign;
        const name = (isBuy ? "m-buy" : "m-sell") + (isEntry ? "" : " m-hollow");
        paths[name] = (paths[name] || "") + "M" + point(middle, tip) + "l" + point(size * 0.8, sign * size * 1.5) + "h" + (-size * 1.6).toFixed(1) + "Z";
      }
      draw(svg, "path", { class: "halo", d: Object.values(paths).join("") });
      for (const name in paths) draw(svg, "path", { class: "mark " + name, d: paths[name] });
    };
    /** Draw how many fills there were along the foot of the chart: purchases above, sales below. */
    const crowd = (svg, visible, x, width) => {
      const BIN = 4, tall = svg.viewBox.baseVal.height;
      const counts = [new Map(), new Map()];
      for (const row of visible) {
        const bin = Math.floor(x(row[0] + 0.5) / BIN);
        if (bin >= 0 && bin * BIN < width) counts[row[1]].set(bin, (counts[row[1]].get(bin) || 0) + 1);
      }
      const most = Math.max(1, ...counts[0].values(), ...counts[1].values());
      counts.forEach((bins, isBuy) => {
        for (const [bin, count] of bins) {
          draw(svg, "rect", {
            class: isBuy ? "m-buy" : "m-sell", "stroke-width": 0, "fill-opacity": (0.25 + 0.75 * (count / most)).toFixed(2),
            x: bin * BIN, width: BIN - 0.5, y: tall - (isBuy ? 15 : 7), height: 6,
          });
        }
      });
      draw(svg, "text", { x: 2, y: tall - 20 }, number(visible.length, 0) + " fills; zoom in to see where");
    };
    const legend = (price) => {
      const kinds = new Set(data.executions[chosen].map((row) => row[1] * 2 + row[2]));
      const names = [[3, "▲", "s-agent", "buy to open"], [2, "△", "s-agent", "buy to close"], [1, "▼", "s-sell", "sell to open"], [0, "▽", "s-sell", "sell to close"]];
      return names.filter(([kind]) => kinds.has(kind)).map(([, mark, style, text]) => {
        const node = item("", text);
        const key = document.createElement("i");
        key.className = "symbol-mark " + style;
        key.textContent = mark;
        node.prepend(key);
        return node;
      });
    };
    const choose = (index) => {
      chosen = index;
      select.value = String(index);
      const count = tradesOf[index].length;
      byId("price-title").textContent = series[index].symbol;
      chart.node.setAttribute("aria-label", "Price of " + series[index].symbol + " with " + count + (count === 1 ? " trade" : " trades") + "; the trades are in the table below");
      show(view.from, view.to);
    };
    select.addEventListener("change", () => choose(Number(select.value)));
    const busiest = tradesOf.map((list) => list.length);
    choose(busiest.indexOf(Math.max(...busiest)));
    window.addEventListener("show-trade", (event) => {
      const row = event.detail;
      const index = series.findIndex((price) => price.symbol === symbolOf(row));
      if (index < 0) return;
      const room = Math.max(20, (row[TRADE.to] - row[TRADE.from]) * 0.75);
      choose(index);
      show(row[TRADE.from] - room, row[TRADE.to] + room);
      byId("prices").scrollIntoView({ behavior: matchMedia("(prefers-reduced-motion: reduce)").matches ? "auto" : "smooth" });
    });
  }

  for (const button of document.querySelectorAll("[data-zoom]")) {
    const actions = { all: () => show(all.from, all.to), in: () => zoom(0.5), out: () => zoom(2), back: () => move(-0.5), on: () => move(0.5) };
    button.addEventListener("click", actions[button.dataset.zoom]);
  }

  // The table of trades: one page of rows at a time, so that thousands stay light

  const table = byId("trades");
  if (table) {
    const PAGE = matchMedia("(max-width: 40rem)").matches ? 12 : 50;
    const body = table.tBodies[0];
    const heads = [...table.tHead.rows[0].cells];
    const tone = (value) => (value > 0 ? "gain" : value < 0 ? "loss" : "");
    const shown = [
      { of: (row) => row[TRADE.number], text: (value) => value, label: "#" },
      { of: symbolOf, text: (value) => value, label: "symbol" },
      { of: (row) => (row[TRADE.direction] > 0 ? "long" : "short"), text: (value) => value, label: "side" },
      { of: (row) => row[TRADE.entered], text: minute, label: "entered", span: true },
      { of: (row) => row[TRADE.left], text: (value) => (value === null ? "open" : minute(value)), label: "exited", span: true },
      { of: (row) => (row[TRADE.left] === null ? null : row[TRADE.left] - row[TRADE.entered]), text: length, label: "held", minor: true },
      { of: (row) => row[TRADE.qty], text: (value) => number(value, 9, 0), label: "quantity" },
      { of: (row) => row[TRADE.entry], text: (value) => number(value, 6, 2), label: "entry" },
      { of: (row) => row[TRADE.exit], text: (value) => number(value, 6, 2), label: "exit" },
      { of: (row) => row[TRADE.cost], text: (value) => number(value, 2), label: "costs", minor: true },
      { of: (row) => row[TRADE.pnl], text: (value) => signed(value, 2), label: "P&L", tone },
      { of: (row) => row[TRADE.share], text: (value) => (value === null ? "–" : (value > 0 ? "+" : "") + percent(value)), label: "return", tone },
    ];
    const state = { column: 0, falling: false, page: 0 };
    const kinds = {
      all: () => true, won: (row) => row[TRADE.left] !== null && row[TRADE.pnl] > 0, lost: (row) => row[TRADE.left] !== null && row[TRADE.pnl] < 0,
      long: (row) => row[TRADE.direction] > 0, short: (row) => row[TRADE.direction] < 0, open: (row) => row[TRADE.left] === null,
    };
    let kept = rows;
    const arrange = () => {
      const symbol = byId("trade-symbol").value, kind = kinds[byId("trade-kind").value];
      const value = shown[state.column].of, sign = state.falling ? -1 : 1;
      kept = rows.filter((row) => kind(row) && (!symbol || symbolOf(row) === symbol));
      const keyed = kept.map((row) => [value(row), row]);
      // What has no value comes last, whichever way the others go.
      keyed.sort(([a], [b]) => (a === b ? 0 : a === null ? 1 : b === null ? -1 : a < b ? -sign : sign));
      kept = keyed.map(([, row]) => row);
      state.page = 0;
      heads.forEach((head, i) => {
        if (i === state.column) head.setAttribute("aria-sort", state.falling ? "descending" : "ascending");
        else head.removeAttribute("aria-sort");
      });
      byId("trade-sort").value = state.column + (state.falling ? "-" : "+");
      fill();
    };
    const fill = () => {
      const first = state.page * PAGE;
      const page = kept.slice(first, first + PAGE);
      body.replaceChildren(...page.map((row) => {
        const line = document.createElement("tr");
        for (const column of shown) {
          const cell = document.createElement("td"), value = column.of(row);
          cell.dataset.label = column.label;
          if (column.label === "#") {
            const button = document.createElement("button");
            button.type = "button";
            button.textContent = value;
            button.setAttribute("aria-label", "Show trade " + value + " in the chart");
            cell.append(button);
          } else cell.textContent = column.text(value);
          const classes = [column.minor ? "minor" : "", column.span ? "span" : "", column.tone ? column.tone(value) : ""];
          cell.className = classes.filter(Boolean).join(" ");
          line.append(cell);
        }
        line.addEventListener("click", () => window.dispatchEvent(new CustomEvent("show-trade", { detail: row })));
        return line;
      }));
      const sum = kept.reduce((total, row) => total + row[TRADE.pnl], 0);
      byId("trade-count").textContent = kept.length
        ? number(first + 1, 0) + "–" + number(first + page.length, 0) + " of " + number(kept.length, 0) + ", together " + signed(sum, 2)
        : "none of " + number(rows.length, 0);
      byId("trade-back").disabled = state.page === 0;
      byId("trade-on").disabled = first + PAGE >= kept.length;
    };
    heads.forEach((head, i) => head.firstElementChild.addEventListener("click", () => {
      // Figures are asked for largest first, names and times from the beginning.
      state.falling = i === state.column ? !state.falling : i >= 5;
      state.column = i;
      arrange();
    }));
    byId("trade-sort").addEventListener("change", (event) => {
      state.column = parseInt(event.target.value, 10);
      state.falling = event.target.value.endsWith("-");
      arrange();
    });
    byId("trade-symbol").addEventListener("change", arrange);
    byId("trade-kind").addEventListener("change", arrange);
    byId("trade-back").addEventListener("click", () => { state.page -= 1; fill(); });
    byId("trade-on").addEventListener("click", () => { state.page += 1; fill(); });
    arrange();
  }
  redraw();
})();
