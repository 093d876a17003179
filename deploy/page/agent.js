// One agent: how it stands, its deployment step by step, and what can be done with it.

import { sentence } from "./api.js";
import { DeployView } from "./deploy.js";
import { ENDED } from "./list.js";
import { LogsView } from "./logs.js";
import { describeProgress, failedStepOf, progressOf, stateOf } from "./state.js";
import { formatAge, formatDate, formatDuration, h, parseTime, plural, setText, webAddress } from "./text.js";
import { announce, hint, openDialog } from "./ui.js";

const WORDS = { done: "done", now: "at work", failed: "failed", waiting: "waiting" };

export class AgentView {
  constructor(app, agentId) {
    this._app = app;
    this.agentId = agentId;
    this._lastStep = this._logUrl = "";
    this._pill = h("span", { class: "pill" });
    this._name = h("h1", { tabindex: "-1" });
    this._meta = h("p", { class: "meta" });
    this._actions = h("div", { class: "row actions" });
    this._notice = h("div", { class: "notice", role: "status", hidden: true });
    this._steps = h("ol", { class: "steps" });
    this._progressTitle = h("h2", { id: "progress-title" });
    this._progressLine = h("p", { class: "now", role: "status" });
    this._clock = h("span", { class: "count" });
    this._progress = h("section", { class: "progress", "aria-labelledby": "progress-title", hidden: true },
      h("div", { class: "row head" }, this._progressTitle, this._clock), this._progressLine, this._steps);
    this._deploy = new DeployView(app, agentId);
    this._logs = new LogsView(app.api, agentId, {
      onSignedOut: (message) => app.signedOut(message),
      onBuildLines: () => this._agent && this._renderProgress(this._agent),
    });
    this.element = h("div", { class: "agent" },
      h("a", { class: "back", href: "#/" }, "‹ Agents"),
      h("header", {}, h("div", { class: "title" }, this._name, this._pill), this._meta, this._actions),
      this._notice, this._progress,
      h("div", { class: "pair" }, this._deploy.element, this._deploy.sources),
      this._logs.element);
    this._deploy.listen(this.element);
    this._logs.element.hidden = true;
  }

  stop() {
    this._logs.stop();
  }

  focus() {
    this._name.focus({ preventScroll: true });
    scrollTo(0, 0);
  }

  render(agent) {
    const before = this._agent;
    this._agent = agent;
    const state = stateOf(agent);
    setText(this._name, agent.name);
    setText(this._pill, state.label);
    this._pill.dataset.state = state.key;
    this._renderMeta(agent);
    this._renderActions(agent);
    this._renderProgress(agent);
    this._renderNotice(agent, state);
    this._deploy.renderSources(agent);
    if (agent.status && this._logs.element.hidden) {
      this._logs.element.hidden = false;
      this._logs.start();
    }
    if (!before) {
      if (agent.status === "deploying" || agent.status === "deployment_failed") this._logs.show("build");
    } else if (before.status !== agent.status) {
      this._logs.show(agent.status === "deploying" || agent.status === "deployment_failed" ? "build" : "agent");
      this._logs.poke();
    }
    if (before && stateOf(before).label !== state.label) announce(`${agent.name}: ${state.label}. ${agent.error ? sentence(agent.error) : ""}`);
  }

  /** What passes by itself: times. */
  tick() {
    if (!this._agent) return;
    this._renderMeta(this._agent);
    if (this._agent.status === "deploying") this._renderClock(this._agent);
  }

  _renderMeta(agent) {
    const done = parseTime(agent.deploymentCompleted);
    const word = ENDED[agent.status];
    const parts = [
      agent.agentId === agent.name ? "" : agent.agentId,
      word && done ? `${word} ${formatAge(this._app.api.now() - done)}` : "",
      agent.rollout?.restarts ? plural(agent.rollout.restarts, "restart") : "",
      agent.buildId ? `build ${agent.buildId.length > 24 ? agent.buildId.slice(0, 8) : agent.buildId}` : "",
    ];
    setText(this._meta, parts.filter(Boolean).join(" · "));
    if (done) this._meta.title = formatDate(done);
  }

  _renderActions(agent) {
    if (agent.status === this._actionsStatus) return;
    this._actionsStatus = agent.status;
    const held = this._actions.contains(document.activeElement) ? document.activeElement.dataset.action : "";
    const button = (action, label, run, isDanger = false) => h("button", { type: "button", "data-action": action, class: isDanger ? "danger" : null, onclick: run }, label);
    const { status } = agent;
    this._actions.replaceChildren(...[
      ["deployed", "deployment_failed"].includes(status) ? button("restart", "Restart", () => this._restart()) : "",
      status === "stopped" ? button("restart", "Start again", () => this._restart()) : "",
      ["deployed", "deployment_failed", "stopped"].includes(status) ? button("rollback", "Roll back", () => this._rollback()) : "",
      status && status !== "stopped" ? button("stop", status === "deploying" ? "Cancel and stop" : "Stop", () => this._stop(), true) : "",
    ].filter(Boolean));
    this._actions.hidden = !this._actions.children.length;
    if (held) (this._actions.querySelector(`[data-action="${held}"]`) ?? this._name).focus();
  }

  _renderNotice(agent, state) {
    const content = [];
    if (agent.status === "deployment_failed") {
      content.push(h("p", {}, h("b", {}, "It could not be deployed. "), sentence(agent.error) || "No reason is known."));
      if (state.hint) content.push(h("p", {}, state.hint));
    } else if (state.hint) content.push(h("p", {}, state.hint));
    for (const problem of agent.unavailable ?? []) content.push(h("p", { class: "unavailable" }, sentence(problem), " What is shown may be old."));
    const text = content.map((each) => each.textContent).join("\n");
    if (text !== this._noticeText) this._notice.replaceChildren(...content);
    this._noticeText = text;
    this._notice.hidden = !content.length;
    this._notice.dataset.state = agent.status === "deployment_failed" ? "bad" : state.key === "good" || state.key === "busy" ? "warn" : state.key;
  }

  _renderProgress(agent) {
    const attempt = `${agent.buildId} ${agent.deploymentStarted}`;
    if (attempt !== this._attempt) this._lastStep = this._logUrl = "";
    this._attempt = attempt;
    this._logUrl = webAddress(agent.build?.logUrl) || this._logUrl;
    if (agent.status === "deploying") {
      if (agent.build) this._lastStep = agent.build.status === "success" ? "rollout" : agent.build.step || this._lastStep;
      this._watched = true;
    }
    const failed = agent.status === "deployment_failed";
    // Between two looks a build may have got further: its log tells how far.
    if (failed) this._lastStep = failedStepOf(agent, this._lastStep, this._logs.buildLines);
    const isShown = agent.status === "deploying" || (this._watched && (failed || agent.status === "deployed"));
    this._progress.hidden = !isShown;
    if (!isShown) return;
    const title = { deploying: "Deploying", deployed: "Deployed", deployment_failed: "Not deployed" }[agent.status];
    setText(this._progressTitle, title);
    this._progress.dataset.state = failed ? "bad" : agent.status === "deployed" ? "good" : "busy";
    setText(this._progressLine, agent.status === "deploying" ? describeProgress(agent, this._lastStep) : failed ? "The deployment ended here:" : "The agent runs.");
    this._renderClock(agent);
    const steps = progressOf(agent, this._lastStep);
    const key = JSON.stringify([steps, this._logUrl]);
    if (key === this._stepsKey) return;
    this._stepsKey = key;
    this._steps.replaceChildren(...steps.map(({ title: words, state }) => h("li", { "data-state": state, "aria-current": state === "now" ? "step" : null }, words, h("span", { class: "unseen" }, `: ${WORDS[state]}`))));
    this._link?.remove();
    this._link = this._logUrl ? h("p", { class: "hint" }, h("a", { href: this._logUrl, target: "_blank", rel: "noopener noreferrer" }, "The build's own page")) : null;
    if (this._link) this._progress.append(this._link);
  }

  _renderClock(agent) {
    const begun = parseTime(agent.deploymentStarted);
    const ended = parseTime(agent.deploymentCompleted) || this._app.api.now();
    setText(this._clock, begun ? formatDuration(ended - begun) : "");
  }

  // What can be done

  _restart() {
    const isStopped = this._agent.status === "stopped";
    return openDialog({
      title: isStopped ? `Start ${this._agent.name} again?` : `Restart ${this._agent.name}?`,
      action: isStopped ? "Start" : "Restart",
      content: [h("p", {}, isStopped ? "It starts from the image that was deployed last." : "Its process ends and starts anew from the image that it has. It does not trade in between.")],
      act: () => this._app.act("restartTradingAgent", this.agentId),
    });
  }

  _rollback() {
    return openDialog({
      title: `Roll ${this._agent.name} back?`, action: "Roll back",
      content: [h("p", {}, this._agent.status === "deployment_failed"
        ? "The last source that was deployed is built and deployed again."
        : "The source that was deployed before this one is built, and replaces it.")],
      act: () => this._app.act("rollbackTradingAgent", this.agentId),
    });
  }

  _stop() {
    const isDeploying = this._agent.status === "deploying";
    const wipe = h("input", { type: "checkbox", id: "delete-state" });
    const told = h("p", { class: "hint", role: "status" });
    wipe.addEventListener("change", () => {
      const form = wipe.closest("form");
      setText(form.ok, wipe.checked ? "Stop and delete" : "Stop");
      setText(told, wipe.checked ? "What the agent has stored is gone then, for good." : "");
    });
    return openDialog({
      title: `Stop ${this._agent.name}?`, action: "Stop", isDanger: true,
      content: [
        h("p", {}, `${isDeploying ? "The build is cancelled, and the" : "The"} agent is taken down. What it has stored stays, so that it can be started again.`),
        hint("stop", "Stopping an agent sells nothing: look at its positions and open orders at Alpaca."),
        h("label", { class: "check", for: "delete-state" }, wipe, "Also delete what it has stored"), told,
      ],
      act: () => this._app.act("stopTradingAgent", this.agentId, { deleteState: wipe.checked }),
    });
  }
}
