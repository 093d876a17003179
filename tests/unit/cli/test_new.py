"""What `dry-work new` writes, and what it refuses."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from dry_work.cli import main
from dry_work.cli.new import FILES, write_agent
from dry_work.errors import ConfigError
from dry_work.market.symbols import read_symbols
from dry_work.settings import parse_agent_id, read_toml


def test_all_files_are_there_and_carry_the_name(tmp_path: Path) -> None:
    made = write_agent("first-one", tmp_path)
    assert made == tmp_path / "first-one"
    for path in FILES.values():
        text = (made / path).read_text()
        assert text
        assert "{{" not in text
    assert (made / "README.md").read_text().startswith("# first-one\n")
    toml = read_toml(made / "dry-work.toml")
    assert toml["agent"] == "agent.py:Agent"
    assert parse_agent_id(toml["agent_id"]) == "first-one"
    assert read_symbols(made / toml["symbols"])
    classes = [node.name for node in ast.parse((made / "agent.py").read_text()).body if isinstance(node, ast.ClassDef)]
    assert classes == ["Agent"]


def test_every_template_is_written() -> None:
    from importlib import resources

    folder = Path(str(resources.files("dry_work"))) / "templates" / "agent"
    assert {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()} == set(FILES)


def test_an_empty_folder_is_used(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    assert (write_agent("mine", tmp_path) / "agent.py").is_file()


def test_what_is_there_is_never_overwritten(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "agent.py").write_text("precious")
    with pytest.raises(ConfigError, match="mine is not empty"):
        write_agent("mine", tmp_path)
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["agent.py"]
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="file is a file"):
        write_agent("file", tmp_path)


@pytest.mark.parametrize("name", ["", "1st", "a/b", "..", "-x", "a b", "ä", "a" * 64, "a\n"])
def test_a_bad_name_is_refused_before_anything_is_made(name: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="expected 1 to 63 letters, digits, - and _, a letter first"):
        write_agent(name, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="x cannot be written: Not a directory"):
        write_agent("x", tmp_path / "file")


def test_the_command_says_what_to_do_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as caught:
        main(["new", "mine", "--path", "deep/er"])
    assert caught.value.code == 0
    assert "cd deep/er/mine && dry-work run --local" in capsys.readouterr().out
    assert (tmp_path / "deep" / "er" / "mine" / "tests" / "test_agent.py").is_file()
    with pytest.raises(SystemExit) as caught:
        main(["new", "mine", "--path", "deep/er"])
    assert caught.value.code == 2
