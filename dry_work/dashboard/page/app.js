// The page: connects, keeps what it is told, draws it at most once a frame.

import { EquityChart, PriceChart, describeBar, lineColour, loadCharts } from "./charts.js";
import { clock, moment, price } from "./format.js";
import { SymbolList } from "./list.js";
import { missingOf, showCompleteness, showMinutes } from "./minutes.js";
import { showFacts, showLatency, showLimits, showLog, showOrders, showPositions, showTiles } from "./panels.js";
import { Scrubber } from "./scrub.js";
import { RunState } from "./state.js";
import { Stream } from "./stream.js";

const byId = (id) => document.getElementById(id);
const TOKEN = "dry-work-token";
const STUCK_MS = 25000; // the engine's loop turns every 15 s at least

const state = new RunState();
let about = null, stream = null, list = null, prices = null, equity = null, scrubber = null;
let chosen = "", pending = new Set(), fresh = 0, isQueued = false, staleSince = 0, problem = "";

// What a request carries. The header keeps other sites' forms out, the token everybody but its owner.

function headers() {
  const token = sessionStorage.getItem(TOKEN);
  return { "X-Dry-Work": "1", ...(token ? { Authorization: "Bearer " + token } : {}) };
}

function takeToken() {
  const found = /^#token=(.+)$/.exec(location.hash);
  if (!found) return;
  sessionStorage.setItem(TOKEN, decodeURIComponent(found[1]));
  history.replaceState(null, "", location.pathname);
}

async function ask(path, options = {}) {
  const answer = await fetch(path, { ...options, headers: { ...headers(), ...(options.headers || {}) }, cache: "no-store" });
  if (answer.status === 401) {
    signIn("The token is missing or wrong.");
    throw new Error("no token");
  }
  const value = await answer.json();
  if (!answer.ok) throw new Error(value.error || String(answer.status));
  return value;
}

function signIn(text) {
  if (stream) stream.close();
  byId("loading").hidden = byId("main").hidden = true;
  byId("sign-in").hidden = false;
  byId("sign-in-problem").hidden = !sessionStorage.getItem(TOKEN);
  byId("sign-in-problem").textContent = text;
  showLink("refused", "token needed");
  byId("token").focus();
}

// The connection

function showLink(name, text) {
  byId("link").dataset.state = name;
  if (byId("link-text").textContent !== text) byId("link-text").textContent = text;
}

function onStreamState(name, text) {
  if (name === "refused") {
    signIn(text);
    return;
  }
  if (name === "live") {
    if (staleSince) announce("The connection is back.");
    staleSince = 0;
    problem = "";
  } else if (!staleSince && !document.hidden) {
    staleSince = Date.now();
    problem = text;
    announce("The connection is lost.");
  }
  showConnection();
}

function showConnection() {
  const head = state.head;
  document.body.classList.toggle("is-stale", Boolean(staleSince));
  if (about && about.mode === "session") showLink("off", "Recorded");
  else if (head && head.phase === "ended") showLink("off", staleSince ? "Ended" : "Run has ended");
  else if (staleSince) showLink("stale", "Stale since " + clock(staleSince));
  else if (head) showLink("live", about.mode === "files" ? "Read from files" : "Live");
  const lines = [];
  if (staleSince && !(head && head.phase === "ended")) lines.push(`What is shown is as of ${clock(staleSince)} UTC: ${problem}. Trying again.`);
  const idle = state.pulse ? state.pulse.engine_age_ms : null;
  if (!staleSince && idle !== null && idle > STUCK_MS && head.phase === "running") lines.push(`The strategy has not returned for ${Math.round(idle / 1000)} s.`);
  if (head && head.feed && head.feed !== "LIVE" && head.feed !== "DELAYED") lines.push(`Market data: ${head.feed}${head.feed_detail ? ", " + head.feed_detail : ""}.`);
  if (head && head.risk.trouble) lines.push(head.risk.trouble);
  if (head && about.note) lines.push(about.note);
  const bar = byId("trouble"), text = lines.join(" ");
  if (bar.textContent !== text) bar.textContent = text;
  bar.hidden = !text;
}

function announce(text) {
  byId("announce").textContent = text;
}

// Drawing

function queue(names, bars = 0) {
  for (const name of names) pending.add(name);
  fresh = fresh < 0 || bars < 0 ? -1 : fresh + bars;
  if (isQueued) return;
  isQueued = true;
  requestAnimationFrame(draw);
}

function draw() {
  isQueued = false;
  const names = pending, bars = fresh;
  pending = new Set();
  fresh = 0;
  const head = state.head;
  if (!head) return;
  if (names.has("head")) showHead(head);
  if (names.has("symbols") || names.has("list")) showList();
  if (names.has("symbols")) {
    showPositions(state.rows, choose);
    showCompleteness(state.rows, choose);
  }
  if (names.has("orders")) showOrders(state.orders, byId("only-open").checked, choose);
  if (names.has("log")) showLog(state.log);
  if (names.has("equity") && equity) equity.show(state.equity, names.has("whole"));
  if (names.has("chart") && state.chart && prices) {
    if (bars < 0) prices.set(state.chart);
    else prices.add(state.chart, bars, names.has("marks"));
  }
  if (names.has("chart") || names.has("symbols")) showChosen(null);
  const row = state.rows.get(chosen), drawn = state.chart && state.chart.symbol === chosen;
  if (row) showMinutes(drawn ? state.chart.minutes : "", head.market_ms, row.length_ms);
}

function showHead(head) {
  document.title = `${head.run.agent.split(":").pop()} · Dry Work`;
  byId("agent").textContent = head.run.agent.split(":").pop();
  byId("agent").title = head.run.agent;
  const mode = byId("mode");
  mode.hidden = false;
  mode.textContent = head.run.mode;
  mode.dataset.state = head.run.mode === "live" ? "bad" : "off";
  byId("market").textContent = head.market_ms ? moment(head.market_ms) + (head.run.own_time ? " market time" : "") : "";
  showTiles(head);
  showRisk(head);
  showLatency(head);
  showFacts(head);
  showConnection();
}

const RISK_TONES = { active: "good", reducing: "warn", flattening: "bad", halted: "bad", off: "off" };
function showRisk(head) {
  const risk = head.risk, pill = byId("risk-state");
  const stopped = risk.state !== "active" && risk.state !== "off";
  const text = risk.state === "active" ? "Trading" : risk.state === "off" ? "No risk gate" : risk.state[0].toUpperCase() + risk.state.slice(1);
  if (pill.textContent !== text) pill.textContent = text;
  pill.dataset.state = RISK_TONES[risk.state] || "off";
  pill.title = stopped ? `since ${moment(risk.at_ms)} UTC by ${risk.who}: ${risk.reason}` : "";
  const why = byId("action-answer");
  if (stopped && !why.dataset.asked) {
    why.hidden = false;
    why.textContent = `${text} since ${moment(risk.at_ms)} UTC by ${risk.who}: ${risk.reason}`;
  } else if (!stopped && !why.dataset.asked) why.hidden = true;
  const isOver = head.phase === "ended" || head.phase === "recorded" || !about.actions.length || risk.state === "off";
  byId("buttons").hidden = isOver;
  byId("halt").hidden = stopped;
  byId("release").hidden = !stopped;
  byId("flatten").hidden = risk.state === "flattening";
  showLimits(risk);
}

function shownRows() {
  const words = byId("filter").value.trim().toUpperCase(), order = byId("order").value;
  let rows = [...state.rows.values()];
  if (words) rows = rows.filter((row) => row.symbol.includes(words));
  if (order === "age") rows.sort((a, b) => a.bar_ms - b.bar_ms);
  else if (order === "profit") rows.sort((a, b) => b.profit - a.profit);
  else if (order === "missing") rows.sort((a, b) => missingOf(b) - missingOf(a));
  else if (order === "worth") rows.sort((a, b) => Math.abs(b.position * b.price) - Math.abs(a.position * a.price));
  return rows;
}

function showList() {
  const rows = shownRows(), now = state.now(Date.now());
  if (!chosen && rows.length) choose(rows[0].symbol);
  list.show(rows, chosen, (row) => state.freshness(row, now));
  let stale = 0;
  for (const row of state.rows.values()) stale += state.freshness(row, now)[0] === "stale" ? 1 : 0;
  byId("symbol-count").textContent = state.rows.size + (stale ? `, ${stale} stale` : "");
}

function showChosen(bar) {
  const row = state.rows.get(chosen);
  if (!row) return;
  const title = byId("h-chart");
  if (title.textContent !== chosen) title.textContent = chosen;
  const known = state.chart && state.chart.symbol === chosen ? state.chart : null;
  const shown = bar || (known && known.bars.length ? known.bars[known.bars.length - 1] : null);
  byId("readout").textContent = shown ? `${moment(shown[0])}  ${describeBar(shown)}` : price(row.close);
  const legend = byId("legend"), lines = known ? known.lines : [];
  while (legend.children.length > lines.length) legend.lastChild.remove();
  lines.forEach((line, at) => {
    let item = legend.children[at];
    if (!item) {
      item = document.createElement("span");
      item.append(document.createElement("i"), document.createElement("span"));
      legend.append(item);
    }
    item.firstChild.style.background = `var(${lineColour(at)})`;
    const value = shown ? shown[6 + at] : null;
    item.lastChild.textContent = `${line.label} ${price(value)}`;
  });
}

function choose(symbol) {
  if (!symbol || symbol === chosen) return;
  chosen = symbol;
  if (!scrubber) history.replaceState(null, "", "#/" + encodeURIComponent(symbol));
  queue(["list", "symbols"]);
  if (stream) stream.open(); // goes on from where it was, with the bars of this symbol
  if (scrubber) scrubber.reload();
}

// Halt, release, flatten

const QUESTIONS = {
  halt: ["Halt this agent?", "No order leaves from then on. Open orders that may open or enlarge a position are canceled. It lasts until it is released.", "Halt"],
  release: ["Let it trade again?", "Losses count from now.", "Release"],
  flatten: ["Flatten the account?", "All open orders are canceled and all positions of the whole account are closed at market, whoever made them. Then the agent is halted.", "Flatten"],
};

function askFor(action) {
  const [title, text, word] = QUESTIONS[action];
  const dialog = byId("ask");
  byId("ask-title").textContent = title;
  byId("ask-text").textContent = text;
  byId("ask-yes").textContent = word;
  byId("ask-yes").classList.toggle("danger", action !== "release");
  byId("reason").value = "";
  dialog.returnValue = "";
  dialog.dataset.action = action;
  dialog.showModal();
}

async function act(action, reason) {
  const answer = byId("action-answer");
  answer.hidden = false;
  answer.dataset.asked = "yes";
  answer.dataset.state = "busy";
  answer.textContent = QUESTIONS[action][2] + " is asked for…";
  try {
    const result = await ask("api/" + action, { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify({ reason }) });
    answer.textContent = result.lines.join(" · ");
    answer.dataset.state = result.done ? "good" : "bad";
  } catch (error) {
    answer.textContent = `${QUESTIONS[action][2]}: ${error.message}`;
    answer.dataset.state = "bad";
  }
  setTimeout(() => {
    delete answer.dataset.asked;
    delete answer.dataset.state;
  }, 15000);
}

// The beginning

function take(delta) {
  const { changed, fresh: bars } = state.apply(delta);
  if (delta.whole) changed.add("whole");
  queue(changed, bars);
}

function listen() {
  byId("filter").addEventListener("input", () => queue(["list"]));
  byId("order").addEventListener("change", () => queue(["list"]));
  byId("only-open").addEventListener("change", () => queue(["orders"]));
  for (const action of Object.keys(QUESTIONS)) byId(action).addEventListener("click", () => askFor(action));
  byId("ask-no").addEventListener("click", () => byId("ask").close());
  byId("ask-form").addEventListener("submit", () => act(byId("ask").dataset.action, byId("reason").value));
  byId("sign-in").addEventListener("submit", (event) => {
    event.preventDefault();
    sessionStorage.setItem(TOKEN, byId("token").value.trim());
    location.reload();
  });
  document.addEventListener("keydown", (event) => {
    if (event.key !== "/" || event.ctrlKey || event.metaKey || event.target.closest("input, dialog")) return;
    event.preventDefault();
    byId("filter").focus();
  });
  document.addEventListener("visibilitychange", () => {
    if (!stream) return;
    if (document.hidden) stream.close(); // a page that nobody sees costs nothing
    else stream.open();
  });
  setInterval(() => {
    if (!document.hidden && state.head) queue(["list"]);
    if (state.head) showConnection();
  }, 1000);
}

async function begin() {
  takeToken();
  listen();
  try {
    about = await ask("api/about");
  } catch (error) {
    if (error.message !== "no token") {
      byId("loading").textContent = "The dashboard is not reached: " + error.message;
      showLink("stale", "Not connected");
    }
    return;
  }
  const found = /^#\/(.+)$/.exec(location.hash);
  if (found) chosen = decodeURIComponent(found[1]);
  list = new SymbolList(byId("list"), { onChoose: choose });
  byId("main").hidden = false;
  byId("loading").hidden = true;
  const isDrawn = about.mode !== "files" && about.charts && (await loadCharts());
  if (isDrawn) {
    prices = new PriceChart(byId("chart"), { onPoint: (bar) => showChosen(bar) });
    equity = new EquityChart(byId("equity"));
  }
  byId("credit").hidden = !isDrawn;
  byId("no-charts").hidden = isDrawn || about.mode === "files";
  byId("chart").hidden = !isDrawn;
  byId("equity-part").hidden = !isDrawn;
  document.body.dataset.mode = about.mode;
  if (about.mode === "session") {
    scrubber = new Scrubber({ ask, take, choose, symbol: () => chosen, clear: () => state.clear() });
    await scrubber.start();
    return;
  }
  stream = new Stream({
    address: () => "api/events?symbol=" + encodeURIComponent(chosen),
    headers,
    onEvent: (name, value) => {
      if (name === "delta") take(value);
      else if (name === "pulse") {
        state.pulse = value;
        state.skew = value.now_ms - Date.now();
        if (state.head && value.risk && state.head.phase !== "ended") {
          state.head.risk = { ...value.risk, trouble: state.head.risk.trouble };
          showRisk(state.head);
        }
        queue(["list"]);
        showConnection();
      }
    },
    onState: onStreamState,
  });
  stream.open();
}

begin();
