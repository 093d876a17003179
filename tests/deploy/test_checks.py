"""What an agent's sources are found to be, without running any of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from deploy.archive import check_archive, make_archive, zip_files
from deploy.checks import SourceSummary, check_sources
from deploy.errors import InvalidSourceError
from dry_work.errors import ConfigError
from dry_work.market.symbols import parse_symbol
from tests.deploy.service_stack import AGENT, agent_files

ROOT = Path(__file__).parents[2]


def check(files: dict[str, bytes]) -> SourceSummary:
    return check_sources(check_archive(zip_files(files)))


def problems(files: dict[str, bytes]) -> list[str]:
    with pytest.raises(InvalidSourceError) as caught:
        check(files)
    return list(caught.value.problems)


def test_an_agent_with_settings_is_understood() -> None:
    toml = b"""
[run]
agent = "my/strategy.py:Cross"
symbols = "lists/mine.txt"
[run.params]
period = 20
[deploy]
requirements = ["ta[fast]==0.11.0", "numpy >=1.26, <3"]
"""
    source = b"import backtrader as bt\nclass Cross(bt.Strategy):\n    params = dict(period=10)\n"
    found = check(
        {"my/strategy.py": source, "lists/mine.txt": b"\xef\xbb\xbf# mine\naapl\n\nBRK.B\n", "dry-work.toml": toml}
    )
    assert found.agent == "my/strategy.py:Cross"
    assert found.params == {"period": 20}
    assert found.symbols == ("AAPL", "BRK.B")
    assert found.requirements == ("ta[fast]==0.11.0", "numpy >=1.26, <3")


def test_without_settings_the_agent_is_agent_agent_py() -> None:
    found = check(agent_files(**{"requirements.txt": b"ta"}))
    assert found.agent == "agent/agent.py:Agent"
    assert found.notes == ("requirements.txt is not read: name packages in dry-work.toml, [deploy] requirements",)


def test_the_bundled_agents_and_the_scaffold_pass(tmp_path: Path) -> None:
    for path in sorted((ROOT / "agents").glob("[a-z]*.py")):
        toml = f'[run]\nagent = "{path.name}"\n'.encode()
        assert check({path.name: path.read_bytes(), "symbols.txt": b"SPY", "dry-work.toml": toml}).agent == path.name
    scaffold = ROOT / "dry_work/templates/agent"
    for path in scaffold.rglob("*.txt"):
        name = path.relative_to(scaffold)
        target = tmp_path / (name if name.name == "symbols.txt" else name.with_suffix(""))
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(path.read_text(encoding="utf-8").replace("{{name}}", "my-agent"), encoding="utf-8")
    assert check_sources(make_archive(tmp_path)).agent == "agent.py:Agent"


@pytest.mark.parametrize(
    ("source", "told"),
    [
        (b"class Agent(bt.Strategy:\n", "agent/agent.py, line 1: "),
        (b"x = 1\nreturn 5\n", "agent/agent.py, line 2: 'return' outside function"),
        (b"def f():\n\tif 1:\n        pass\n", "agent/agent.py, line 3: inconsistent use of tabs"),
        (b"x = '\x00'", "agent/agent.py: "),
        (b"\xff\xfe", "agent/agent.py"),
        (b"# coding: klingon\n", "agent/agent.py"),
        (b"x = " + b"(" * 300 + b")" * 300, "agent/agent.py"),
        (b"#" * (1 << 20) + b"#", "has 1,048,577 bytes, allowed are 1,048,576"),
        (b"x = 1\n", "agent/agent.py: has no class Agent; strategies in it: none"),
        (b"class Agent:\n    pass\n", "agent/agent.py, line 1: Agent is no Backtrader strategy"),
        (b"class Agent(object):\n    pass\n", "Agent is no Backtrader strategy"),
        (b"class A(B): pass\nclass B(A): pass\nclass Agent(object): pass\n", "Agent is no Backtrader strategy"),
        (b"class Base: pass\nclass Agent(Base): pass\n", "Agent is no Backtrader strategy"),
        (b"import backtrader as bt\nclass Other(bt.Strategy): pass\n", "no class Agent; strategies in it: Other"),
    ],
)
def test_what_is_wrong_with_the_strategy_is_told_with_its_line(source: bytes, told: str) -> None:
    assert any(told in problem for problem in problems({"agent/agent.py": source, "symbols.txt": b"SPY"}))


@pytest.mark.parametrize(
    "source",
    [
        b"import backtrader as bt\nclass Agent(bt.Strategy): pass\n",
        b"from backtrader import Strategy\nclass Base(Strategy): pass\nclass Agent(Base): pass\n",
        b"from elsewhere import Base\nclass Agent(Base): pass\n",
        b"from elsewhere import Agent\n",
        b"from elsewhere import *\n",
        b"import backtrader as bt\nclass Mine(bt.Strategy): pass\nAgent = Mine\n",
        b"try:\n    import x\nexcept ImportError:\n    x = None\nif x:\n    class Agent(x.Strategy): pass\n",
    ],
)
def test_what_the_tree_cannot_tell_is_left_to_the_build(source: bytes) -> None:
    assert check({"agent/agent.py": source, "symbols.txt": b"SPY"}).agent == "agent/agent.py:Agent"


@pytest.mark.parametrize(
    ("toml", "told"),
    [
        (b"[run", "dry-work.toml: no TOML"),
        (b"\xff", "dry-work.toml: no TOML"),
        (b"run = 5", "[run] is to be a table"),
        (b"run = {cash = 5}", "[run] is to name the agent"),
        (b"[run]\nagent = 5", "[run] agent: expected a text such as agent/agent.py:Agent, not 5"),
        (b'[run]\nagent = "../x.py:A"', "expected a file and a class"),
        (b'[run]\nagent = "/x.py:A"', "expected a file and a class"),
        (b'[run]\nagent = "x.py:A; rm"', "expected a file and a class"),
        (b'[run]\nagent = "--help"', "expected a file and a class"),
        (b'[run]\nagent = "gone.py:A"', "gone.py: the agent's file is not in the archive, which has agent/agent.py"),
        (b'[run]\nagent = "gone.mod:A"', "the archive has no module gone.mod"),
        (b"[run]\nparams = 5", "[run.params] is to be a table"),
        (b"[run.params]\nfast = 5", "[run.params] Agent has no parameter 'fast'; its parameters: period"),
        (b'[run]\nsymbols = "none.txt"', "none.txt: is not in the archive"),
        (b"[deploy]\nimage = 5", "[deploy] has no setting 'image'"),
        (b'[deploy]\nrequirements = "ta"', "expected a list of texts"),
        (b'[deploy]\nrequirements = ["ta @ https://x/y.whl"]', "addresses, files and options are not taken"),
        (b'[deploy]\nrequirements = ["--index-url=https://x"]', "addresses, files and options are not taken"),
        (b'[deploy]\nrequirements = ["-e ."]', "addresses, files and options are not taken"),
        (b'[deploy]\nrequirements = ["ta==1\\nevil"]', "addresses, files and options are not taken"),
        (b'[deploy]\nrequirements = ["Dry_Work==9"]', "dry-work is the image's own"),
    ],
)
def test_settings_that_cannot_be_used_are_told(toml: bytes, told: str) -> None:
    assert any(told in problem for problem in problems(agent_files(**{"dry-work.toml": toml})))


@pytest.mark.parametrize(
    ("symbols", "told"),
    [
        (b"", "symbols.txt: names no symbol"),
        (b"# none\n", "names no symbol"),
        (b"SPY\nB T C\n", "symbols.txt, line 2: 'B T C' is not a symbol"),
        (b"\xff", "symbols.txt: expected UTF-8 text"),
        (b"".join(b"A%d\n" % number for number in range(1001)), "names 1,001 symbols, allowed are 1,000"),
    ],
)
def test_symbols_that_cannot_be_used_are_told(symbols: bytes, told: str) -> None:
    assert any(told in problem for problem in problems(agent_files(**{"symbols.txt": symbols})))


@pytest.mark.parametrize("text", ["AAPL", "BRK.B", "BTC/USD", "AAPL240315C00172500", "", "A B", "é", "1", "A.BCDE"])
def test_a_symbol_is_one_exactly_when_the_runner_takes_it(text: str) -> None:
    try:
        expected = bool(parse_symbol(text))
    except ConfigError:
        expected = False
    files = {"agent/agent.py": AGENT, "symbols.txt": f"SPY\n{text}\n".encode()}
    if expected or not text:
        check(files)
    else:
        assert any("is not a symbol" in problem for problem in problems(files))


# Made at run time, so that no scanner of this repository finds what looks like a secret.
FAKE = {
    "pem": "-----BEGIN " + "RSA PRIVATE KEY-----\nabc",
    "service account": '{"type": "service_account", "private' + '_key": "' + "x" * 30 + '"}',
    "alpaca": "key = '" + "PK" + "7" + "ABCDEFGHIJKLMNOPQ" + "'",
    "google": "AI" + "za" + "A" * 35,
    "aws": "AK" + "IA" + "ABCDEFGHIJKLMNOP",
    "github": "gh" + "p_" + "a" * 36,
    "slack": "xox" + "b-" + "1" * 24,
    "token": "ey" + "J" + "a" * 20 + ".ey" + "J" + "b" * 20 + "." + "c" * 30,
    "assigned": "ALPACA_SECRET_KEY = '" + "q7Zr2LmXv9" + "Tb4Kp8Wc1N" + "'",
    "json": '{"api_key": "' + "q7Zr2LmXv9" + "Tb4Kp8Wc1N" + '"}',
}


@pytest.mark.parametrize("kind", FAKE)
def test_secrets_in_files_are_found_and_never_repeated(kind: str) -> None:
    found = problems(agent_files(**{"notes/x.txt": b"first line\n" + FAKE[kind].encode()}))
    assert found[0].startswith("notes/x.txt, line 2: has ")
    assert all(word not in text for text in found for word in ("q7Zr2", "ABCDEFGH", "aaaaaaaaaa"))


@pytest.mark.parametrize(
    "name", [".env", "sub/.env.production", "id_rsa", "cert.p12", ".netrc", ".pypirc", "kubeconfig"]
)
def test_files_that_hold_secrets_by_their_name_are_refused(name: str) -> None:
    assert problems(agent_files(**{name: b"x"}))[0].startswith(f"{name}: ")


def test_what_only_looks_like_a_secret_passes() -> None:
    found = check(
        agent_files(
            **{
                ".env.example": b"ALPACA_SECRET_KEY=\n",
                "a.py": b"import os\nSECRET_KEY = os.environ['ALPACA_SECRET_KEY']\npassword = 'your-password-here'\n",
                "b.py": b"token = 'AAAAAAAAAAAAAAAAAAAAAAAAAAAA'\napi_key = f(\"x\")\n",
            }
        )
    )
    assert found.agent == "agent/agent.py:Agent"


def test_nothing_of_an_archive_is_run(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    evil = f"open({str(mark)!r}, 'w')\n".encode() + AGENT
    check({"agent/agent.py": evil, "symbols.txt": b"SPY", "sitecustomize.py": evil, "conftest.py": evil})
    assert not mark.exists()


def test_every_finding_is_told_at_once() -> None:
    found = problems({"agent/agent.py": b"(", "other.py": b"(", ".env": b"x", "dry-work.toml": b"[deploy]\nx = 1"})
    assert len(found) == 4
