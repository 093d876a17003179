// Charts, drawn by the package that the server serves as library.js; without it the page does without.

import { price as priceText } from "./format.js";

let library = null;

/** Load the package; tell whether it is there. */
export function loadCharts() {
  if (library) return Promise.resolve(true);
  return new Promise((done) => {
    const script = document.createElement("script");
    script.src = "library.js";
    script.addEventListener("load", () => {
      library = window.LightweightCharts;
      done(Boolean(library));
    });
    script.addEventListener("error", () => done(false));
    document.head.append(script);
  });
}

const LINE_COLOURS = ["--line-1", "--line-2", "--line-3", "--line-4"];
const style = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const seconds = (ms) => Math.round(ms / 1000);

function options(node) {
  return {
    width: node.clientWidth,
    height: node.clientHeight,
    layout: { background: { type: "solid", color: "transparent" }, textColor: style("--muted"), fontFamily: getComputedStyle(document.body).fontFamily, fontSize: 11 },
    grid: { vertLines: { color: style("--grid") }, horzLines: { color: style("--grid") } },
    rightPriceScale: { borderColor: style("--rule") },
    timeScale: { borderColor: style("--rule"), timeVisible: true, secondsVisible: false, rightOffset: 4, minBarSpacing: 0.2 },
    crosshair: { mode: 0, vertLine: { color: style("--muted"), labelBackgroundColor: style("--tag") }, horzLine: { color: style("--muted"), labelBackgroundColor: style("--tag") } },
    handleScroll: { vertTouchDrag: false },
  };
}

class Drawing {
  constructor(node) {
    this.node = node;
    this.chart = library.createChart(node, options(node));
    this.size = new ResizeObserver(() => this.chart.resize(node.clientWidth, node.clientHeight));
    this.size.observe(node);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
      this.chart.applyOptions(options(this.node));
      this.colour();
    });
  }
}

/** Prices of one symbol, the lines of its indicators, its fills. */
export class PriceChart extends Drawing {
  constructor(node, { onPoint }) {
    super(node);
    this.bars = this.chart.addCandlestickSeries({ priceLineVisible: false });
    this.volume = this.chart.addHistogramSeries({ priceScaleId: "volume", priceFormat: { type: "volume" }, lastValueVisible: false, priceLineVisible: false });
    this.lines = [];
    this.shown = null;
    this.last = 0;
    this.chart.subscribeCrosshairMove((event) => onPoint(event.time ? this.rowAt(event.time) : null));
    this.colour();
  }

  colour() {
    const up = style("--gain-fill"), down = style("--loss-fill");
    this.bars.applyOptions({ upColor: up, downColor: down, wickUpColor: up, wickDownColor: down, borderVisible: false });
    this.volume.applyOptions({ color: style("--volume") });
    this.lines.forEach((line, at) => line.applyOptions({ color: style(LINE_COLOURS[at % LINE_COLOURS.length]) }));
    if (this.shown) this.mark(this.shown);
  }

  rowAt(time) {
    if (!this.shown) return null;
    const bars = this.shown.bars;
    let low = 0, high = bars.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (seconds(bars[middle][0]) < time) low = middle + 1;
      else high = middle;
    }
    return low < bars.length ? bars[low] : null;
  }

  /** Draw all of a symbol's bars anew. */
  set(part) {
    for (const line of this.lines) this.chart.removeSeries(line);
    const below = part.lines.some((line) => line.below);
    this.chart.priceScale("right").applyOptions({ scaleMargins: { top: 0.08, bottom: below ? 0.28 : 0.16 } });
    this.chart.priceScale("volume").applyOptions({ scaleMargins: { top: below ? 1 : 0.88, bottom: 0 } });
    this.lines = part.lines.map((line, at) => this.chart.addLineSeries({
      color: style(LINE_COLOURS[at % LINE_COLOURS.length]), lineWidth: 1.5, priceLineVisible: false, lastValueVisible: false, crosshairMarkerVisible: false,
      ...(line.below ? { priceScaleId: "below" } : {}),
    }));
    if (below) this.chart.priceScale("below").applyOptions({ scaleMargins: { top: 0.8, bottom: 0.02 } });
    this.shown = part;
    const bars = part.bars, closes = bars.map((bar) => bar[4]).filter(Number.isFinite);
    const least = closes.length ? Math.min(...closes) : 1;
    const decimals = least >= 1 ? 2 : least >= 0.01 ? 4 : 8;
    this.bars.applyOptions({ priceFormat: { type: "price", precision: decimals, minMove: 10 ** -decimals } });
    this.bars.setData(bars.map(candle));
    this.volume.setData(bars.map(volume));
    this.lines.forEach((line, at) => line.setData(bars.map((bar) => point(bar, at))));
    this.last = bars.length ? seconds(bars[bars.length - 1][0]) : 0;
    this.mark(part);
    const shown = Math.min(bars.length, Math.max(60, Math.floor(this.node.clientWidth / 6)));
    if (bars.length) this.chart.timeScale().setVisibleLogicalRange({ from: bars.length - shown, to: bars.length + 3 });
  }

  /** Draw the bars that are new. */
  add(part, fresh, marks) {
    this.shown = part;
    for (const bar of part.bars.slice(part.bars.length - fresh)) {
      if (seconds(bar[0]) <= this.last) continue;
      this.last = seconds(bar[0]);
      this.bars.update(candle(bar));
      this.volume.update(volume(bar));
      this.lines.forEach((line, at) => line.update(point(bar, at)));
    }
    if (marks) this.mark(part);
  }

  mark(part) {
    const bars = part.bars;
    if (!bars.length) return;
    const buy = style("--accent"), sell = style("--sell");
    const many = part.marks.length > 60;
    const found = [];
    for (const [ms, side, qty, , closes] of part.marks) {
      if (ms < bars[0][0] - 60000) continue;
      const bar = this.rowAt(seconds(ms)) || bars[bars.length - 1];
      const isBuy = side === "buy";
      found.push({
        time: seconds(bar[0]), position: isBuy ? "belowBar" : "aboveBar", color: isBuy ? buy : sell,
        shape: closes ? "circle" : isBuy ? "arrowUp" : "arrowDown", size: 1.2, text: many ? "" : (closes ? "exit " : "") + Number(qty.toPrecision(4)),
      });
    }
    this.bars.setMarkers(found.sort((a, b) => a.time - b.time));
  }
}

/** The account's value. */
export class EquityChart extends Drawing {
  constructor(node) {
    super(node);
    this.chart.applyOptions({ timeScale: { rightOffset: 1 } });
    this.line = this.chart.addAreaSeries({ lineWidth: 1.5, priceLineVisible: false });
    this.last = 0;
    this.count = 0;
    this.colour();
  }

  colour() {
    const colour = style("--accent");
    this.line.applyOptions({ lineColor: colour, topColor: colour + "33", bottomColor: colour + "00" });
  }

  show(points, isWhole) {
    const behind = [];
    for (let at = points.length - 1; at >= 0 && (isWhole || seconds(points[at][0]) > this.last); at -= 1) behind.push(points[at]);
    behind.reverse();
    const found = [];
    for (const [ms, value] of behind) {
      const time = seconds(ms);
      if (found.length && found[found.length - 1].time >= time) found[found.length - 1].value = value;
      else found.push({ time, value });
    }
    if (isWhole || found.length > 50) {
      if (!isWhole) return this.show(points, true);
      this.line.setData(found);
      this.chart.timeScale().fitContent();
    } else {
      for (const each of found) this.line.update(each);
    }
    this.count += found.length;
    if (found.length) this.last = found[found.length - 1].time;
    return undefined;
  }
}

const candle = (bar) => ({ time: seconds(bar[0]), open: bar[1], high: bar[2], low: bar[3], close: bar[4] });
const volume = (bar) => ({ time: seconds(bar[0]), value: bar[5] || 0 });
function point(bar, at) {
  const value = bar[6 + at];
  return value === null || value === undefined ? { time: seconds(bar[0]) } : { time: seconds(bar[0]), value };
}

/** Return the readout of a bar. */
export function describeBar(bar) {
  return `O ${priceText(bar[1])}  H ${priceText(bar[2])}  L ${priceText(bar[3])}  C ${priceText(bar[4])}`;
}
export const lineColour = (at) => LINE_COLOURS[at % LINE_COLOURS.length];
