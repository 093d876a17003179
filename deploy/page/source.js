// From what was dropped or chosen to the files of an archive. Nothing of it is run or looked at but for names.

export const IGNORE_FILE = ".dryworkignore";
// As `dry-work deploy` leaves out; the service refuses files that hold secrets all the same.
export const DEFAULT_IGNORED = [
  ".git/", ".hg/", ".svn/", ".venv/", "venv/", "node_modules/", "__pycache__/", "*.py[cod]", "*.egg-info/",
  ".mypy_cache/", ".pytest_cache/", ".ruff_cache/", ".hypothesis/", ".ipynb_checkpoints/", ".dry-work/", ".idea/",
  ".vscode/", ".DS_Store", ".env", ".env.*", "!.env.example", IGNORE_FILE, "/agent-source.zip",
];
const MAX_FILES = 1000;
const MAX_WALKED = 20000;

export class SourceError extends Error {}

/** Return a function that tells whether a path is left out; rules are read as git reads its own. */
export function ignoreRules(lines) {
  const rules = [];
  for (const line of lines) {
    let text = line.trim();
    if (!text || text.startsWith("#")) continue;
    const result = !text.startsWith("!");
    if (!result) text = text.slice(1);
    const onlyFolders = text.endsWith("/");
    rules.push({ pattern: translate(text.replace(/\/+$/, "")), onlyFolders, result });
  }
  const hits = (path, isFolder) => {
    let ignored = false;
    for (const rule of rules) if ((isFolder || !rule.onlyFolders) && rule.pattern.test(path)) ignored = rule.result;
    return ignored;
  };
  return (path) => {
    for (let at = path.indexOf("/"); at > 0; at = path.indexOf("/", at + 1)) if (hits(path.slice(0, at), true)) return true;
    return hits(path, false);
  };
}

function translate(text) {
  const parts = text.replace(/^\//, "").split("/");
  let found = text.includes("/") ? "" : "(?:.*/)?";
  parts.forEach((part, at) => {
    const last = at === parts.length - 1;
    if (part === "**") found += last ? ".*" : "(?:.*/)?";
    else found += translatePart(part) + (last ? "" : "/");
  });
  return new RegExp(`^${found}$`, "s");
}

function translatePart(part) {
  let found = "";
  for (let at = 0; at < part.length; at++) {
    const character = part[at];
    const end = part.indexOf("]", at + 2);
    if (character === "*") found += "[^/]*";
    else if (character === "?") found += "[^/]";
    else if (character === "[" && end > 0) {
      const inner = part.slice(at + 1, end).replace(/\\/g, "\\\\");
      const negated = /^[!^]/.test(inner);
      found += `(?!/)[${negated ? "^" : ""}${inner.slice(negated ? 1 : 0).replace(/\[/g, "\\[")}]`;
      at = end;
    } else found += (character === "\\" && at + 1 < part.length ? part[++at] : character).replace(/[.*+?^${}()|[\]\\/]/g, "\\$&");
  }
  return found;
}

/** Without the one folder that everything is in. */
export function stripRoot(entries) {
  const roots = new Set(entries.map(({ path }) => path.split("/", 1)[0]));
  if (roots.size !== 1 || entries.some(({ path }) => !path.includes("/"))) return entries;
  const root = [...roots][0];
  // agent/agent.py is where an agent is by default: dropped as a folder of this name, it stays there.
  if (root === "agent" && entries.some(({ path }) => path === "agent/agent.py")) return entries;
  return entries.map((entry) => ({ ...entry, path: entry.path.slice(root.length + 1) }));
}

/** Return {zip} or {files, ignored, asksSymbols} of [{path, file}]; a file has name, size and arrayBuffer(). */
export async function readSource(entries, maxBytes) {
  if (entries.length === 1 && /\.zip$/i.test(entries[0].path) && !entries[0].path.includes("/")) {
    const { file } = entries[0];
    if (file.size > maxBytes) throw new SourceError(`${file.name} has ${file.size.toLocaleString("en")} bytes, allowed are ${maxBytes.toLocaleString("en")}.`);
    return { zip: new Uint8Array(await file.arrayBuffer()), name: file.name };
  }
  const inside = stripRoot(entries);
  const own = inside.find(({ path }) => path === IGNORE_FILE);
  const lines = own ? (await own.file.text()).replace(/^\ufeff/, "").split(/\r?\n/) : [];
  const isIgnored = ignoreRules([...DEFAULT_IGNORED, ...lines]);
  const kept = inside.filter(({ path }) => !isIgnored(path));
  const ignored = inside.length - kept.length;
  if (!kept.length) throw new SourceError(ignored ? "Everything in it is left out by the ignore rules." : "There are no files in it.");
  if (kept.length > MAX_FILES) throw new SourceError(`It has ${kept.length.toLocaleString("en")} files, allowed are ${MAX_FILES.toLocaleString("en")}. Name what does not belong to the agent in ${IGNORE_FILE}.`);
  const total = kept.reduce((sum, { file }) => sum + file.size, 0);
  if (total > maxBytes) throw new SourceError(`Its files have ${total.toLocaleString("en")} bytes, allowed are ${maxBytes.toLocaleString("en")}. Name what does not belong to the agent in ${IGNORE_FILE}.`);
  const files = [];
  for (const { path, file } of kept) files.push({ path, bytes: new Uint8Array(await file.arrayBuffer()) });
  return { ...placeAgent(files), ignored };
}

/** Put a Python file that comes alone where an agent is looked for. */
export function placeAgent(files) {
  const has = (name) => files.some(({ path }) => path === name);
  const scripts = files.filter(({ path }) => /^[^/]+\.py$/.test(path));
  if (has("dry-work.toml") || has("agent/agent.py") || scripts.length !== 1) return { files, asksSymbols: false };
  const name = scripts[0].path;
  const path = `agent/${/^[A-Za-z0-9_][\w.-]*\.py$/.test(name) ? name : "agent.py"}`;
  const toml = new TextEncoder().encode(`[run]\nagent = "${path}"\n`);
  const placed = files.map((each) => (each.path === name ? { ...each, path } : each));
  return { files: [...placed, { path: "dry-work.toml", bytes: toml }], asksSymbols: !has("symbols.txt") };
}

/** Return the text of a symbols.txt from what somebody has written. */
export const symbolsText = (text) => text.split(/[\s,;]+/).filter(Boolean).map((symbol) => `${symbol.toUpperCase()}\n`).join("");

/** Return [{path, file}] of a drop; to be called within the event, before anything is awaited. */
export function droppedEntries(transfer) {
  const items = [...transfer.items].filter((item) => item.kind === "file");
  const handles = items.map((item) => item.webkitGetAsEntry?.() ?? null);
  if (!handles.every(Boolean)) return Promise.resolve([...transfer.files].map((file) => ({ path: file.name, file })));
  return walk(handles);
}

async function walk(handles) {
  const found = [];
  // What is never sent is not walked through: a virtual environment has more files than everything else.
  const isIgnored = ignoreRules(DEFAULT_IGNORED.filter((line) => line.endsWith("/")).map((line) => line.slice(0, -1)));
  const visit = async (handle) => {
    const path = handle.fullPath.replace(/^\//, "");
    if (handle.isFile) {
      found.push({ path, file: await new Promise((done, fail) => handle.file(done, fail)) });
      if (found.length > MAX_WALKED) throw new SourceError(`It has more than ${MAX_WALKED.toLocaleString("en")} files.`);
      return;
    }
    if (isIgnored(path)) return;
    const reader = handle.createReader();
    for (;;) {
      const some = await new Promise((done, fail) => reader.readEntries(done, fail)); // a hundred at most
      if (!some.length) return;
      for (const each of some) await visit(each);
    }
  };
  for (const handle of handles) await visit(handle);
  return found;
}

/** Return [{path, file}] of a file input, also of one that takes folders. */
export const chosenEntries = (input) => [...input.files].map((file) => ({ path: file.webkitRelativePath || file.name, file }));
