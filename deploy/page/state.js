// What an agent's status means, in words. Pure.

import { sentence } from "./api.js";

export const STEPS = {
  "create-dockerfile": "Prepare the build",
  "copy-agent-code": "Fetch the source",
  "build-agent-image": "Build the image",
  "check-agent-import": "Import the agent",
  "push-agent-image": "Push the image",
  "write-manifest": "Write the manifest",
  "deploy-to-gke": "Hand over to the cluster",
  rollout: "Wait until it is ready",
};

/** Return {key, label, hint} of an agent; key is one of none, busy, good, warn, bad, off. */
export function stateOf(agent) {
  const rollout = agent.rollout;
  switch (agent.status) {
    case "": return { key: "none", label: "Not deployed" };
    case "deploying": return { key: "busy", label: "Deploying" };
    case "stopped": return { key: "off", label: "Stopped" };
    case "deployment_failed":
      return { key: "bad", label: "Failed", hint: rollout?.phase === "complete" && rollout.ready ? "What was deployed before still runs." : "" };
    case "deployed":
      if (!rollout) return { key: "good", label: "Deployed" };
      if (rollout.phase === "missing") return { key: "bad", label: "Missing", hint: "It was deployed, and is not there any more. Restart it." };
      if (rollout.phase === "failed") return { key: "bad", label: "Not running", hint: sentence(rollout.reason) };
      if (!rollout.ready) return { key: "warn", label: "Not ready", hint: sentence(rollout.reason) };
      return { key: "good", label: "Running", hint: "" };
    default: return { key: "none", label: String(agent.status) };
  }
}

/** The step that the last line of a build's log belongs to. */
export function lastStepOf(lines) {
  for (let at = lines.length - 1; at >= 0; at--) {
    const match = /^(?:Step #\d+ )?- "([^"]{1,60})"/.exec(lines[at]);
    if (match) return match[1];
  }
  return "";
}

/** The step at which a deployment has failed; `seen` is the last one that was seen at work. */
export function failedStepOf(agent, seen, lines) {
  const last = lastStepOf(lines);
  if (seen === "rollout" || !last) return seen;
  // The cluster took the manifest, and then the agent did not become ready.
  return last === "deploy-to-gke" && !/did not take the manifest/.test(agent.error ?? "") ? "rollout" : last;
}

/** Return [{id, title, state}] of a deployment: done, now, failed or waiting. `lastStep` is the last that was seen. */
export function progressOf(agent, lastStep = "") {
  const build = agent.build;
  const isOver = agent.status === "deployed";
  const failed = agent.status === "deployment_failed";
  let current = lastStep;
  if (build) current = build.status === "success" ? "rollout" : build.step;
  const ids = Object.keys(STEPS);
  if (current && !ids.includes(current)) ids.splice(ids.length - 1, 0, current);
  const at = ids.indexOf(current);
  return ids.map((id, number) => {
    let state = "waiting";
    if (isOver || number < at) state = "done";
    else if (number === at) state = failed ? "failed" : "now";
    return { id, title: STEPS[id] ?? id, state };
  });
}

/** Return one line on how a deployment stands. */
export function describeProgress(agent, lastStep = "") {
  if (agent.build?.status === "queued" || (agent.status === "deploying" && !agent.buildId)) return "The build is waiting for its turn.";
  const now = progressOf(agent, lastStep).find(({ state }) => state === "now");
  if (now?.id === "rollout") return agent.rollout?.reason ? sentence(agent.rollout.reason) : "The agent starts.";
  return now ? `${now.title}.` : "The build begins.";
}

const ORDER = { deploying: 0, deployment_failed: 1, deployed: 2, "": 3, stopped: 4 };

/** By what needs attention, then by name. */
export function sortAgents(agents) {
  return [...agents].sort((a, b) => (ORDER[a.status] ?? 3) - (ORDER[b.status] ?? 3)
    || a.name.localeCompare(b.name, "en", { numeric: true, sensitivity: "base" }) || (a.agentId < b.agentId ? -1 : 1));
}

/** Keep what was asked of an agent singly, as long as the list says the same of it. */
export function mergeAgent(known, listed) {
  const same = known && known.status === listed.status && known.buildId === listed.buildId && known.sourceDigest === listed.sourceDigest;
  return same ? { ...listed, build: known.build, rollout: known.rollout, unavailable: known.unavailable, checkedMs: known.checkedMs } : listed;
}

/** Which agents are to be asked for singly: those that are being deployed, and some others that were asked longest ago. */
export function chooseChecks(agents, limit = 3) {
  const busy = agents.filter(({ status }) => status === "deploying").slice(0, 10);
  const others = agents.filter(({ status }) => status === "deployed").sort((a, b) => (a.checkedMs ?? 0) - (b.checkedMs ?? 0));
  return [...busy, ...others.slice(0, limit)].map(({ agentId }) => agentId);
}

/** Add new log lines to those that are held; the answer may begin with lines that are held already. */
export function mergeLines(held, answer, limit = 3000) {
  const counts = new Map();
  const key = (line) => `${line.time}\n${line.text}`;
  for (const line of held) counts.set(key(line), (counts.get(key(line)) ?? 0) + 1);
  const added = answer.filter((line) => {
    const left = counts.get(key(line)) ?? 0;
    if (left) counts.set(key(line), left - 1);
    return !left;
  });
  return { lines: [...held, ...added].slice(-limit), added };
}

/** error, warn or nothing, by what a line says of itself. */
export function levelOf(text) {
  if (/^\s*(\S+\s+){0,3}\[?\s*(error|critical|fatal)\b/i.test(text) || /^(Traceback|\w*(Error|Exception)\b)/.test(text)) return "error";
  return /^\s*(\S+\s+){0,3}\[?\s*warn(ing)?\b/i.test(text) ? "warn" : "";
}
