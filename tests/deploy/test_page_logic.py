"""The page's modules in Node: zips, ignore rules, states, pauses, log lines, sentences."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from deploy.archive import DEFAULT_IGNORED, IgnoreRules, check_archive, make_archive, zip_files

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "deploy/page"
TIMEOUT_S = 60.0

Run = Callable[..., Any]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Run the body of a function of the modules and one value; return what it returns."""
    node = shutil.which("node")
    if node is None:
        pytest.skip("no Node: install nodejs to run the page's modules without a browser")
    folder = tmp_path_factory.mktemp("page")
    for path in FOLDER.glob("*.js"):
        shutil.copyfile(path, folder / path.name)
    (folder / "package.json").write_text('{"type": "module"}')
    head = "".join(
        f"import * as {name} from './{name}.js';\n" for name in ("zip", "source", "state", "poll", "api", "session")
    )
    head += "import { readFileSync } from 'node:fs';\n"

    def call(body: str, given: object = None) -> Any:
        code = f"const given = JSON.parse(readFileSync(0));\nconst found = await (async () => {{ {body} }})();\n"
        (folder / "run.js").write_text(f"{head}{code}console.log(JSON.stringify(found ?? null));\n", encoding="utf-8")
        done = subprocess.run(
            [node, "run.js"], cwd=folder, input=json.dumps(given), capture_output=True, text=True, timeout=TIMEOUT_S,
            check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return call


def test_a_zip_made_by_the_page_has_the_bytes_that_the_command_makes(run: Run) -> None:
    files = {
        "agent/agent.py": b"import backtrader as bt\n", "symbols.txt": b"", "a/\u00e9t\u00e9.txt": b"x" * 3_000,
        "\U0001f600.txt": bytes(range(256)), "\uffee.txt": b"1", "B.txt": b"2", "a.txt": b"3",
    }  # fmt: skip
    given = [{"path": path, "bytes": list(content)} for path, content in files.items()]
    body = "return [...zip.makeZip(given.map(({path, bytes}) => ({path, bytes: Uint8Array.from(bytes)})))]"
    made = bytes(run(body, given))
    assert made == zip_files(files)
    assert dict(check_archive(made).files) == files
    assert zipfile.ZipFile(io.BytesIO(made)).testzip() is None


PATHS = [
    "agent.py", ".env", ".env.example", ".env.local", "a/.env", ".git/config", "x/__pycache__/y.pyc", "y.pyo", "z.pyd",
    "venv/lib/a.py", "sub/venv/lib/a.py", "data/a.csv", "data/keep/a.csv", "docs/a.md", "x/docs/a.md", "[a].txt",
    "a.txt", "b.txt", "c1.txt", "deep/er/notes.log", "agent-source.zip", "x/agent-source.zip", ".dryworkignore",
    "é/ü.log",
]  # fmt: skip
LINES = ["# comment", "", "data/*", "!data/keep", "/docs", "[!a-b].txt", "c?.txt", "**/notes.*", "\\[a\\].txt", "é/**"]


def test_the_page_leaves_out_what_the_command_leaves_out(run: Run) -> None:
    def is_ignored(path: str, rules: IgnoreRules) -> bool:
        parts = path.split("/")
        parents = ["/".join(parts[:end]) for end in range(1, len(parts))]
        return any(rules.ignores(parent, is_folder=True) for parent in parents) or rules.ignores(path, is_folder=False)

    for more in ([], LINES):
        rules = IgnoreRules((*DEFAULT_IGNORED, *more))
        body = (
            "const hits = source.ignoreRules([...source.DEFAULT_IGNORED, ...given.more]);"
            "return given.paths.filter((path) => hits(path))"
        )
        found = run(body, {"paths": PATHS, "more": more})
        assert found == [path for path in PATHS if is_ignored(path, rules)]
        assert 5 < len(found) < len(PATHS) - 5
    assert tuple(run("return source.DEFAULT_IGNORED")) == DEFAULT_IGNORED


READ = """
const entries = given.map(([path, text]) => ({ path, file: new File([text], path.split("/").pop()) }));
const found = await source.readSource(entries, 1000).catch((error) => ({ problem: error.message }));
if (found.zip) return { zip: found.zip.length };
if (found.problem) return found;
const files = Object.fromEntries(found.files.map(({ path, bytes }) => [path, new TextDecoder().decode(bytes)]));
return { files, ignored: found.ignored, asks: found.asksSymbols };
"""


@pytest.mark.parametrize(
    ("entries", "expected"),
    [
        (
            [("my agent/dry-work.toml", "[run]"), ("my agent/a.py", "1"), ("my agent/.git/HEAD", "x")],
            {"files": {"dry-work.toml": "[run]", "a.py": "1"}, "ignored": 1, "asks": False},
        ),
        ([("agent/agent.py", "1")], {"files": {"agent/agent.py": "1"}, "ignored": 0, "asks": False}),
        (
            [("cross.py", "1")],
            {
                "files": {"agent/cross.py": "1", "dry-work.toml": '[run]\nagent = "agent/cross.py"\n'},
                "ignored": 0,
                "asks": True,
            },
        ),
        (
            [('x"\n.py', "1"), ("symbols.txt", "SPY")],
            {
                "files": {
                    "agent/agent.py": "1",
                    "symbols.txt": "SPY",
                    "dry-work.toml": '[run]\nagent = "agent/agent.py"\n',
                },
                "ignored": 0,
                "asks": False,
            },
        ),
        ([("a.zip", "PK")], {"zip": 2}),
        ([("a.zip", "x" * 1_001)], {"problem": "a.zip has 1,001 bytes, allowed are 1,000."}),
        ([("f/.git/HEAD", "x")], {"problem": "Everything in it is left out by the ignore rules."}),
        (
            [("f/a.py", "x" * 600), ("f/b.py", "x" * 600)],
            {
                "problem": "Its files have 1,200 bytes, allowed are 1,000."
                " Name what does not belong to the agent in .dryworkignore."
            },
        ),
        (
            [("f/.dryworkignore", "big.csv\r\n"), ("f/a.py", "1"), ("f/b.py", "2"), ("f/big.csv", "x" * 2_000)],
            {"files": {"a.py": "1", "b.py": "2"}, "ignored": 2, "asks": False},
        ),
    ],
)  # fmt: skip
def test_what_was_dropped_becomes_the_files_of_an_agent(run: Run, entries: Any, expected: Any) -> None:
    assert run(READ, entries) == expected


def test_a_folder_gives_the_digest_that_the_command_gives(run: Run, tmp_path: Path) -> None:
    files = {"dry-work.toml": "[run]\nagent = 'a.py'\n", "a.py": "# é\n", "data/x.csv": "1,2\n", ".env": "no\n"}
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    body = (
        "const entries = given.map(([path, text]) => ({ path: `f/${path}`, file: new File([text], path) }));"
        "const { files } = await source.readSource(entries, 1e6);"
        "const hash = await crypto.subtle.digest('SHA-256', zip.makeZip(files));"
        "return [...new Uint8Array(hash)].map((byte) => byte.toString(16).padStart(2, '0')).join('')"
    )
    assert run(body, list(files.items())) == make_archive(tmp_path).digest


def test_pauses_grow_while_nothing_happens_and_after_failures_and_have_bounds(run: Run) -> None:
    body = (
        "const half = () => 0.5; return {busy: poll.nextDelay({isBusy: true, quiet: 9}, half),"
        "quiet: [0, 1, 5, 99].map((quiet) => poll.nextDelay({quiet}, half)),"
        "failed: [1, 2, 3, 99].map((failures) => poll.nextDelay({failures, isBusy: true}, half)),"
        "spread: [() => 0, () => 1].map((random) => poll.nextDelay({failures: 1}, random))}"
    )
    found = run(body)
    assert found["busy"] == 1_500
    assert found["quiet"][0] == 4_000
    assert found["quiet"] == sorted(found["quiet"])
    assert found["quiet"][-1] == 30_000
    assert found["failed"] == [2_000, 4_000, 8_000, 60_000]
    assert found["spread"] == [1_500, 2_500]


@pytest.mark.parametrize(
    ("agent", "key", "label"),
    [
        ({"status": ""}, "none", "Not deployed"),
        ({"status": "deploying"}, "busy", "Deploying"),
        ({"status": "stopped"}, "off", "Stopped"),
        ({"status": "deployment_failed"}, "bad", "Failed"),
        ({"status": "deployed"}, "good", "Deployed"),
        ({"status": "deployed", "rollout": {"phase": "complete", "ready": True}}, "good", "Running"),
        ({"status": "deployed", "rollout": {"phase": "progressing", "ready": False}}, "warn", "Not ready"),
        ({"status": "deployed", "rollout": {"phase": "failed", "ready": False, "reason": "x"}}, "bad", "Not running"),
        ({"status": "deployed", "rollout": {"phase": "missing"}}, "bad", "Missing"),
        ({"status": "something new"}, "none", "something new"),
    ],
)
def test_every_status_has_a_word(run: Run, agent: Any, key: str, label: str) -> None:
    found = run("return state.stateOf(given)", agent)
    assert (found["key"], found["label"]) == (key, label)


def test_steps_are_done_at_work_failed_or_waiting(run: Run) -> None:
    body = "return given.map(([agent, last]) => state.progressOf(agent, last).map(({state}) => state[0]).join(''))"
    working = {"status": "deploying", "build": {"status": "working", "step": "build-agent-image"}}
    built = {"status": "deploying", "build": {"status": "success", "step": ""}}
    failed = {"status": "deployment_failed"}
    unknown = {"status": "deploying", "build": {"status": "working", "step": "install-packages"}}
    cases = [[working, ""], [built, ""], [failed, "check-agent-import"], [{"status": "deployed"}, ""], [unknown, ""]]
    assert run(body, cases) == ["ddnwwwww", "dddddddn", "dddfwwww", "dddddddd", "dddddddnw"]
    lines = ['Step #3 - "check-agent-import": x', "more"]
    body = "return given.map(([agent, seen, lines]) => state.failedStepOf(agent, seen, lines))"
    last = ['- "deploy-to-gke": applied']  # as the local target writes it
    refused = {"error": "the cluster did not take the manifest (x)"}
    cases = [
        [{}, "create-dockerfile", lines],
        [{}, "rollout", lines],
        [{}, "x", []],
        [{}, "x", last],
        [refused, "x", last],
    ]
    assert run(body, cases) == ["check-agent-import", "rollout", "x", "rollout", "deploy-to-gke"]


def test_log_lines_that_come_again_are_held_once_and_lines_that_are_alike_are_kept(run: Run) -> None:
    def line(second: int, text: str) -> dict[str, str]:
        return {"time": f"2026-01-02T15:04:{second:02d}Z", "text": text}

    held = [line(1, "a"), line(2, "b"), line(2, "b")]
    answer = [line(2, "b"), line(2, "b"), line(2, "b"), line(3, "a")]
    found = run("return state.mergeLines(given[0], given[1])", [held, answer])
    assert [each["text"] for each in found["added"]] == ["b", "a"]
    assert [each["text"] for each in found["lines"]] == ["a", "b", "b", "b", "a"]
    assert len(run("return state.mergeLines(given[0], given[1], 3).lines", [held, answer])) == 3


def test_levels_are_read_from_the_beginning_of_a_line(run: Run) -> None:
    lines = {
        "ERROR order 1": "error", "2026-01-02T15:04:05Z [error    ] x": "error",
        "Traceback (most recent call last):": "error",
        "KeyError: 'AAPL'": "error", "WARNING no bar": "warn", "bar AAPL without any error": "", "errors=0": "", "": "",
    }  # fmt: skip
    assert run("return given.map((line) => state.levelOf(line))", list(lines)) == list(lines.values())


def test_a_few_agents_are_asked_for_singly_and_in_turn(run: Run) -> None:
    agents = [{"agentId": f"a{n}", "status": "deployed", "checkedMs": 100 - n} for n in range(50)]
    agents += [{"agentId": f"b{n}", "status": "deploying"} for n in range(20)]
    agents += [{"agentId": "never", "status": ""}, {"agentId": "new", "status": "deployed"}]
    found = run("return state.chooseChecks(given)", agents)
    assert found == [*(f"b{n}" for n in range(10)), "new", "a49", "a48"]


def test_errors_are_sentences(run: Run) -> None:
    problem = (
        "agent/agent.py, line 3: invalid syntax; dry-work.toml: [run] agent 'x': expected a file; strategies in it: A;"
        " 'my file.py': is a link"
    )
    answers = [
        [401, {"error": "Unauthorized"}],
        [401, {"error": {"status": "UNAUTHENTICATED", "message": "the identity token has expired: sign in again"}}],
        [403, {"error": {"status": "PERMISSION_DENIED", "message": "there is no agent 'x' of yours"}}],
        [400, {"error": "Invalid source", "message": problem, "status": "INVALID_ARGUMENT"}],
        [404, {"error": "Agent not found"}],
        [502, None],
        [413, None],
    ]
    body = (
        "return given.map(([status, body]) => { const e = api.readError(status, body); return [e.kind, e.problems] })"
    )
    assert run(body, answers) == [
        ["UNAUTHENTICATED", ["The token does not hold: sign in again."]],
        ["UNAUTHENTICATED", ["The identity token has expired: sign in again."]],
        ["PERMISSION_DENIED", ["There is no agent 'x' of yours."]],
        [
            "INVALID_ARGUMENT",
            [
                "agent/agent.py, line 3: invalid syntax.",
                "dry-work.toml: [run] agent 'x': expected a file; strategies in it: A.",
                "'my file.py': is a link.",
            ],
        ],
        ["INVALID_ARGUMENT", ["Agent not found."]],
        ["INTERNAL", ["The service answered with 502 and nothing that can be read."]],
        ["INVALID_ARGUMENT", ["The archive is too large for the service."]],
    ]


def test_a_token_is_taken_out_of_the_address(run: Run) -> None:
    body = """
    const calls = [];
    const past = { replaceState: (...args) => calls.push(args) };
    const take = (hash) => session.takeToken({ hash, pathname: "/x/", search: "?a=1" }, past);
    return [take("#token=a%2Bb"), take("#/agent/token=1"), take("#token=%"), calls.length, calls[0]];
    """
    assert run(body) == ["a+b", "", "", 2, [None, "", "/x/?a=1"]]
