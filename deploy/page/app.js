// Puts the page together: sign-in, the list, the agent that is looked at, and what is asked of the service when.

import { AgentView } from "./agent.js";
import { Api, CallError } from "./api.js";
import { ListView, pathOf } from "./list.js";
import { Poller } from "./poll.js";
import { forgetToken, keepToken, keptToken, nameOf, offerGoogle, takeToken } from "./session.js";
import { chooseChecks, mergeAgent, stateOf } from "./state.js";
import { formatTime, h, setText } from "./text.js";
import { announce, openDialog } from "./ui.js";

const $ = (id) => document.getElementById(id);
const DEFAULTS = { googleClientId: "", takesGcloudTokens: false, tokenFile: "", maxArchiveBytes: 10 << 20 };

class App {
  constructor() {
    this.api = new Api();
    this.config = DEFAULTS;
    this.agents = new Map();
    this.view = null; // of the agent that is looked at
    this._list = new ListView($("list"), { onCreate: () => this.create(), now: () => this.api.now() });
    this._listPoller = new Poller(() => this._askList(), { onChange: () => this._renderLive(), shortest: 3000 });
    this._agentPoller = new Poller(() => this._askAgent(), { onChange: () => this._renderLive() });
    addEventListener("hashchange", () => {
      const token = takeToken(location, history);
      if (!token) return this._route();
      this.signedOut("");
      return this._signIn(token);
    });
    // A file that misses its place is not to replace the page.
    for (const type of ["dragover", "drop"]) addEventListener(type, (event) => event.preventDefault());
    $("sign-out").addEventListener("click", () => this.signedOut(""));
    $("retry").addEventListener("click", () => { this._listPoller.poke(); this._agentPoller.poke(); });
    $("skip").addEventListener("click", () => $("main").focus());
    $("show-token").addEventListener("click", () => {
      const shows = $("token").type === "password";
      $("token").type = shows ? "text" : "password";
      $("show-token").setAttribute("aria-pressed", String(shows));
      setText($("show-token"), shows ? "Hide" : "Show");
    });
    $("token-form").addEventListener("submit", (event) => {
      event.preventDefault();
      this._signIn($("token").value.trim());
    });
    setInterval(() => { this._renderLive(); this.view?.tick(); }, 1000);
  }

  async start() {
    const token = takeToken(location, history) || keptToken();
    try {
      this.config = { ...DEFAULTS, ...(await (await fetch("config.json")).json()) };
    } catch { /* a token can be pasted all the same */ }
    this._explainSignIn();
    $("loading").hidden = true;
    if (token) await this._signIn(token);
    else this._showSignIn("");
  }

  // Signing in and out

  _explainSignIn() {
    const { googleClientId, takesGcloudTokens, tokenFile } = this.config;
    const how = $("token-how");
    if (tokenFile) {
      setText($("sign-in-lede"), "This service runs on your machine. Its token is in a file that only you can read.");
      how.replaceChildren("Print it with ", h("code", {}, `cat ${tokenFile}`), ". A link to this page that ends in ", h("code", {}, "#token="), " and the token signs in too.");
      return;
    }
    setText($("sign-in-lede"), googleClientId ? "With the Google account that your agents belong to." : "With an identity token of the account that your agents belong to.");
    setText($("token-label"), "Identity token");
    how.replaceChildren(
      ...(takesGcloudTokens ? ["Print one with ", h("code", {}, "gcloud auth print-identity-token"), ". "] : []),
      "A Firebase ID token of this project is taken, and holds for an hour. A site of your own may open this page with it: ",
      h("code", {}, "…/#token="), " and the token. It is taken out of the address at once, and kept in this tab only.");
  }

  _showSignIn(problem) {
    $("app").hidden = $("live").hidden = $("who").hidden = $("sign-out").hidden = $("stale").hidden = true;
    $("sign-in").hidden = false;
    setText($("sign-in-problem"), problem);
    $("sign-in-problem").hidden = !problem;
    document.title = "Sign in – Dry Work";
    if (this.config.googleClientId) {
      $("google").hidden = $("or").hidden = false;
      offerGoogle($("google"), this.config.googleClientId, (token) => this._signIn(token));
    } else $("token").focus();
  }

  async _signIn(token) {
    const button = $("token-form").querySelector("[type=submit]");
    if (!token || button.disabled) return;
    if (!/^[\x21-\x7e]+$/.test(token)) {
      this._showSignIn("The token has a space or another character that no token has. Paste it again.");
      return;
    }
    this.api.token = token;
    button.disabled = true;
    try {
      this._takeList(await this.api.call("listTradingAgents"), Date.now());
    } catch (error) {
      // A service that is down says nothing about the token.
      if (error.kind === "UNAUTHENTICATED") {
        this.api.token = "";
        forgetToken();
        this._showSignIn(error.message);
      } else {
        keepToken(token);
        this._showSignIn(`${error.message} Sign in again in a moment.`);
        $("token").value = token;
      }
      return;
    } finally {
      button.disabled = false;
    }
    keepToken(token);
    $("token").value = "";
    $("sign-in").hidden = true;
    $("app").hidden = $("live").hidden = $("sign-out").hidden = false;
    setText($("who"), nameOf(token));
    $("who").hidden = !nameOf(token);
    this._route();
    this._listPoller.start();
    announce(`Signed in. ${this.agents.size} agents.`);
  }

  /** Sign out; `problem` tells why when it was not wanted. Files and texts that are on the page stay on it then. */
  signedOut(problem) {
    if (!this.api.token) return;
    this._listPoller.stop();
    this._agentPoller.stop();
    this.api.token = "";
    forgetToken();
    if (!problem) {
      this.agents.clear();
      this._leave();
      this._render();
    }
    this._showSignIn(problem);
  }

  // Asking

  async _call(name, data) {
    const { token } = this.api;
    try {
      const answer = await this.api.call(name, data);
      // What was asked for another session is not shown in this one.
      if (token !== this.api.token) throw new CallError("UNAUTHENTICATED", "Signed out meanwhile.");
      return answer;
    } catch (error) {
      if (error.kind === "UNAUTHENTICATED" && token === this.api.token) this.signedOut(error.message);
      throw error;
    }
  }

  async upload(agentId, zip) {
    const answer = await this.api.upload(agentId, zip);
    this._agentPoller.poke();
    return answer;
  }

  /** Call a function that changes an agent, and look at once what came of it. */
  async act(name, agentId, data = {}) {
    const answer = await this._call(name, { agentId, ...data });
    const known = this.agents.get(agentId);
    if (known) this._keep({ ...known, status: answer.status, buildId: answer.buildId, build: undefined, rollout: undefined, error: "", deploymentStarted: answer.status === "deploying" && known.status !== "deploying" ? new Date(this.api.now()).toISOString() : known.deploymentStarted, deploymentCompleted: answer.status === "deploying" ? null : known.deploymentCompleted });
    this._agentPoller.poke();
    return answer;
  }

  async _askList() {
    const begunMs = Date.now();
    const answer = await this._call("listTradingAgents");
    const changed = this._takeList(answer, begunMs);
    const others = chooseChecks([...this.agents.values()]).filter((agentId) => agentId !== this.view?.agentId);
    await Promise.allSettled(others.map((agentId) => this._check(agentId)));
    return { changed, isBusy: others.some((agentId) => this.agents.get(agentId)?.status === "deploying") };
  }

  _takeList(answer, begunMs) {
    const text = JSON.stringify(answer.agents);
    const changed = text !== this._listText;
    this._listText = text;
    const before = this.agents;
    // What was asked of an agent singly after the list was asked for is newer.
    this.agents = new Map(answer.agents.map((listed) => {
      const known = before.get(listed.agentId);
      return [listed.agentId, known?.checkedMs > begunMs ? known : mergeAgent(known, listed)];
    }));
    this._render();
    return changed;
  }

  async _check(agentId) {
    const answer = await this._call("getTradingAgentStatus", { agentId });
    this._keep({ ...answer, checkedMs: Date.now() });
    return answer;
  }

  async _askAgent() {
    const { agentId } = this.view;
    let answer;
    try {
      answer = await this._check(agentId);
    } catch (error) {
      if (error.kind !== "PERMISSION_DENIED" && error.kind !== "INVALID_ARGUMENT") throw error;
      this.agents.delete(agentId);
      if (this.view?.agentId === agentId) this._showMissing(error.message);
      return { isBusy: false, changed: false };
    }
    const text = JSON.stringify(answer);
    const changed = text !== this._agentText;
    this._agentText = text;
    return { isBusy: answer.status === "deploying", changed };
  }

  _keep(agent) {
    this.agents.set(agent.agentId, agent);
    this._render();
  }

  // Showing

  _route() {
    if (!this.api.token) return;
    const match = /^#\/agent\/(.+)$/.exec(location.hash);
    let agentId = "";
    try {
      agentId = match ? decodeURIComponent(match[1]) : "";
    } catch { /* no address of this page */ }
    const isSame = this.view?.agentId === agentId;
    if (!agentId) {
      const from = this.view?.agentId;
      this._leave();
      this._render();
      if (from) this._list.focus(from);
      return;
    }
    if (!isSame) {
      this._leave();
      this.view = new AgentView(this, agentId);
      $("detail").replaceChildren(this.view.element);
    }
    this._render();
    this._agentPoller.start();
    if (!isSame && this.view) {
      this._agentPoller.poke();
      if (getComputedStyle($("list")).display === "none") this.view.focus();
    }
  }

  _leave() {
    this._agentPoller.stop();
    this.view?.stop();
    this.view = null;
    this._agentText = "";
  }

  _showMissing(message) {
    this._leave();
    $("detail").replaceChildren(h("div", { class: "empty" }, h("p", {}, message), h("p", {}, h("a", { href: "#/" }, "All agents"))));
  }

  _render() {
    const agents = [...this.agents.values()];
    this._list.render(agents, this.view?.agentId);
    document.body.classList.toggle("has-agent", location.hash.startsWith("#/agent/"));
    document.body.classList.toggle("has-none", !agents.length);
    const agent = this.view && this.agents.get(this.view.agentId);
    if (agent) {
      this.view.render(agent);
      document.title = `${agent.name}: ${stateOf(agent).label} – Dry Work`;
      return;
    }
    document.title = "Agents – Dry Work";
    if (!this.view && !location.hash.startsWith("#/agent/")) this._renderNothing(agents.length);
  }

  _renderNothing(count) {
    const key = count ? "some" : "none";
    if ($("detail").dataset.shown === key && $("detail").querySelector(".start")) return;
    $("detail").dataset.shown = key;
    $("detail").replaceChildren(h("div", { class: "empty start" }, ...(count ? [h("p", {}, "Choose an agent to see how it stands.")] : [
      h("h2", {}, "From a strategy file to a running agent"),
      h("ol", { class: "how" },
        h("li", {}, h("b", {}, "Create an agent. "), "A name is enough."),
        h("li", {}, h("b", {}, "Drop its folder or file on the page. "), "It is checked without being run."),
        h("li", {}, h("b", {}, "Deploy, and watch. "), "Build, start and log are shown as they happen.")),
      h("button", { type: "button", class: "main", onclick: () => this.create() }, "Create your first agent"),
    ])));
  }

  _renderLive() {
    if (!this.api.token || $("app").hidden) return;
    const pollers = [this._listPoller, ...(this.view ? [this._agentPoller] : [])];
    const failed = pollers.find(({ error }) => error);
    $("live").dataset.state = failed ? "stale" : "live";
    setText($("live-text"), failed ? "Stale" : "Live");
    $("stale").hidden = !failed;
    document.body.classList.toggle("is-stale", Boolean(failed));
    if (!failed) {
      $("live").title = this._listPoller.lastMs ? `Last answer at ${formatTime(this._listPoller.lastMs)}` : "";
      return;
    }
    setText($("stale-since"), failed.lastMs ? `What is shown is of ${formatTime(failed.lastMs)}.` : "What is shown may be old.");
    setText($("stale-why"), failed.error.message);
    const seconds = Math.ceil((failed.nextMs - Date.now()) / 1000);
    setText($("stale-next"), seconds > 0 ? `Next try in ${seconds} s.` : "Trying…");
  }

  create() {
    const name = h("input", { id: "agent-name", required: true, maxlength: "100", autocomplete: "off" });
    const id = h("input", { id: "agent-id", maxlength: "256", autocomplete: "off", autocapitalize: "off", spellcheck: "false", "aria-describedby": "agent-id-how" });
    return openDialog({
      title: "New agent", action: "Create",
      content: [
        h("label", { for: "agent-name" }, "Name"), name,
        h("label", { for: "agent-id" }, "Id ", h("span", { class: "sub" }, "optional")), id,
        h("p", { class: "hint", id: "agent-id-how" }, "It names the agent in commands and in the cluster, and cannot be changed. Left empty, it is made from the name."),
      ],
      act: async () => {
        const made = await this._call("createTradingAgent", { name: name.value.trim(), ...(id.value.trim() ? { agentId: id.value.trim() } : {}) });
        this._keep({ sources: [], error: "", sourceDigest: "", ...made, ...this.agents.get(made.agentId) });
        this._listPoller.poke();
        location.hash = pathOf(made.agentId);
        announce(`${made.name} is created.`);
        return made;
      },
    });
  }
}

new App().start();
