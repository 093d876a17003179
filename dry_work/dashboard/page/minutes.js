// What became of the bars that were to come: the newest of one symbol, and the counts of all.

import { number } from "./format.js";
import { Table } from "./panels.js";

const byId = (id) => document.getElementById(id);
const WORDS = { a: "arrived", l: "late", f: "filled", m: "missing", q: "without trades", h: "halted", c: "closed" };
const ROWS_SHOWN = 50;
const NAMES = ["expected", "arrived", "late", "filled", "missing"]; // as the counts of a row begin

/** Show the newest bars of a symbol; letters: the oldest first, the last one at `until`. */
export function showMinutes(letters, until, length) {
  const strip = byId("minutes"), words = byId("minutes-words");
  strip.hidden = words.hidden = !letters;
  if (!letters) return;
  while (strip.children.length > letters.length) strip.lastChild.remove();
  while (strip.children.length < letters.length) strip.append(document.createElement("i"));
  const counts = new Map();
  [...letters].forEach((letter, at) => {
    const cell = strip.children[at];
    if (cell.dataset.kind !== letter) cell.dataset.kind = letter;
    const end = new Date(until - (letters.length - 1 - at) * length).toISOString().slice(11, 16);
    const title = `${end} ${WORDS[letter]}`;
    if (cell.title !== title) cell.title = title;
    counts.set(letter, (counts.get(letter) || 0) + 1);
  });
  const told = [...Object.keys(WORDS)].filter((letter) => counts.has(letter));
  const summary = `last ${letters.length} bars: ${told.map((letter) => `${counts.get(letter)} ${WORDS[letter]}`).join(", ")}`;
  if (strip.getAttribute("aria-label") !== summary) {
    strip.setAttribute("aria-label", summary);
    const lead = document.createElement("span");
    lead.textContent = `last ${letters.length} bars`;
    words.replaceChildren(lead, ...told.map((letter) => {
      const item = document.createElement("span"), mark = document.createElement("i");
      mark.className = "minute";
      mark.dataset.kind = letter;
      item.append(mark, `${counts.get(letter)} ${WORDS[letter]}`);
      return item;
    }));
  }
}

/** Return the part of the expected bars that is there, of counts. */
const shareOf = ([expected, , , , missing]) => (expected ? (expected - missing) / expected : 1);
const percent = (share) => (share === 1 ? "100 %" : number(Math.min(share * 100, 99.99)) + " %");

/** How many bars of a row are missing, for sorting. */
export const missingOf = (row) => (row.counts ? row.counts[4] : -1);

let table = null;
export function showCompleteness(rows, onChoose) {
  const known = [...rows.values()].filter((row) => row.counts && row.counts[0] + row.counts[5]);
  byId("complete-part").hidden = !known.length;
  if (!known.length) return;
  table ||= new Table(byId("complete"), [{ name: "symbol", left: true, link: true }, { name: "complete" }, ...NAMES.map((name) => ({ name }))], { empty: "", onChoose });
  const sums = NAMES.map((_, at) => known.reduce((sum, row) => sum + row.counts[at], 0));
  const text = sums[0] ? `${percent(shareOf(sums))} of ${number(sums[0], 0)} expected bars` : "no bars were expected so far";
  const worst = [...known].sort((a, b) => shareOf(a.counts) - shareOf(b.counts) || b.counts[2] + b.counts[3] - a.counts[2] - a.counts[3]).slice(0, ROWS_SHOWN);
  const more = known.length > worst.length ? `, ${worst.length} of ${known.length} symbols are listed` : "";
  const count = byId("complete-count");
  if (count.textContent !== text + more) count.textContent = text + more;
  table.show(worst.map((row) => [row.symbol, [
    row.symbol, percent(shareOf(row.counts)),
    ...NAMES.map((name, at) => [number(row.counts[at], 0), row.counts[at] && name === "missing" ? "loss" : row.counts[at] && name === "late" ? "warn" : ""]),
  ]]));
}
