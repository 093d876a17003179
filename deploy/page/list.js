// The list of agents. Rows are kept and changed in place: two hundred agents cost nothing while nothing happens.

import { sortAgents, stateOf } from "./state.js";
import { formatAge, h, parseTime, plural, setText } from "./text.js";

export const ENDED = { deployed: "deployed", deployment_failed: "failed", stopped: "stopped" };
export const pathOf = (agentId) => `#/agent/${encodeURIComponent(agentId)}`;

export class ListView {
  constructor(root, { onCreate, now }) {
    this._now = now;
    this._rows = new Map();
    this._list = h("ul", { class: "agents" });
    this._count = h("span", { class: "count" });
    this._none = h("p", { class: "empty small", hidden: true }, "No agent fits the filter.");
    this._filter = h("input", { type: "search", placeholder: "Filter by name, id or status", "aria-label": "Filter agents", oninput: () => this._applyFilter() });
    this._tools = h("div", { class: "filter", hidden: true }, this._filter);
    root.replaceChildren(
      h("div", { class: "row head" }, h("h1", { id: "list-title" }, "Agents ", this._count),
        h("button", { type: "button", id: "new-agent", onclick: onCreate }, "New agent")),
      this._tools, this._list, this._none,
    );
  }

  render(agents, selected) {
    this._agents = sortAgents(agents);
    setText(this._count, agents.length ? String(agents.length) : "");
    this._tools.hidden = agents.length < 7;
    const wanted = new Set(agents.map(({ agentId }) => agentId));
    for (const [agentId, row] of this._rows) {
      if (!wanted.has(agentId)) {
        row.item.remove();
        this._rows.delete(agentId);
      }
    }
    let before = null;
    for (const agent of this._agents) {
      let row = this._rows.get(agent.agentId);
      if (!row) {
        row = this._makeRow(agent);
        this._rows.set(agent.agentId, row);
      }
      this._update(row, agent, agent.agentId === selected);
      const next = before ? before.nextSibling : this._list.firstChild;
      if (next !== row.item) this._list.insertBefore(row.item, next);
      before = row.item;
    }
    this._applyFilter();
  }

  focus(agentId) {
    (this._rows.get(agentId)?.link ?? document.getElementById("new-agent")).focus();
  }

  _makeRow(agent) {
    const name = h("span", { class: "name" });
    const pill = h("span", { class: "pill" });
    const sub = h("span", { class: "sub" });
    const link = h("a", { href: pathOf(agent.agentId) }, name, pill, sub);
    return { item: h("li", {}, link), link, name, pill, sub };
  }

  _update(row, agent, isSelected) {
    const state = stateOf(agent);
    setText(row.name, agent.name);
    setText(row.pill, state.label);
    row.pill.dataset.state = state.key;
    const done = parseTime(agent.deploymentCompleted), begun = parseTime(agent.deploymentStarted);
    const age = agent.status === "deploying" && begun ? `began ${formatAge(this._now() - begun)}` : done ? `${ENDED[agent.status] ?? ""} ${formatAge(this._now() - done)}` : "";
    setText(row.sub, [agent.agentId === agent.name ? "" : agent.agentId, age].filter(Boolean).join(" · "));
    if (isSelected) row.link.setAttribute("aria-current", "page");
    else row.link.removeAttribute("aria-current");
  }

  _applyFilter() {
    const text = this._tools.hidden ? "" : this._filter.value.trim().toLowerCase();
    let shown = 0;
    for (const agent of this._agents ?? []) {
      const fits = !text || `${agent.name}\n${agent.agentId}\n${stateOf(agent).label}`.toLowerCase().includes(text);
      this._rows.get(agent.agentId).item.hidden = !fits;
      shown += fits;
    }
    this._none.hidden = shown > 0 || !text;
    if (text) this._count.setAttribute("aria-label", `${plural(shown, "agent")} of ${this._agents.length}`);
  }
}
