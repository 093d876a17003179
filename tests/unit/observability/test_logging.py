"""Logs as lines of JSON, of logfmt, and for people."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
import structlog

from dry_work.errors import ConfigError
from dry_work.observability.logging import LogSettings, apply_log_settings, render_google, render_logfmt, set_up_logging


def log_all() -> None:
    log = structlog.get_logger("dry_work.test")
    log.debug("a detail")
    log.info("what happened", feed="sip", path=Path("a/b"), names=("x", "y"), none=None, good=True)
    try:
        raise ValueError("two\nlines")
    except ValueError:
        log.exception("it failed")


def test_json_is_one_object_a_line_with_its_source(capsys: pytest.CaptureFixture[str]) -> None:
    apply_log_settings(LogSettings(level="info", form="json", shows_source=True))
    log_all()
    first, second = (json.loads(line) for line in capsys.readouterr().err.splitlines())
    assert list(first)[:3] == ["timestamp", "level", "event"]
    assert first["timestamp"].endswith("Z")
    assert first["source"].startswith("test_logging.py:")
    del first["timestamp"], first["source"]
    assert first == {
        "level": "info",
        "event": "what happened",
        "feed": "sip",
        "path": "a/b",
        "names": ["x", "y"],
        "none": None,
        "good": True,
    }
    assert (second["level"], second["event"]) == ("error", "it failed")
    assert "ValueError: two\nlines" in second["exception"]


def test_logfmt_is_one_line_whatever_is_in_it(capsys: pytest.CaptureFixture[str]) -> None:
    apply_log_settings(LogSettings(level="debug", form="logfmt"))
    log_all()
    detail, first, second = capsys.readouterr().err.splitlines()
    assert detail.endswith('level=debug event="a detail"')
    assert first.endswith('event="what happened" feed=sip path="\\"a/b\\"" names="[\\"x\\", \\"y\\"]" none= good=true')
    assert "two\\nlines" in second
    assert "source=" not in first + second


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("plain-1.5", "plain-1.5"),
        ("", '""'),
        ("a b", '"a b"'),
        ("a=b", '"a=b"'),
        ('"', '"\\""'),
        ("\t", '"\\t"'),
        (1.5, "1.5"),
        (False, "false"),
        (None, ""),
        ("müßig", "müßig"),
    ],
)
def test_logfmt_quotes_what_would_be_misread(value: object, text: str) -> None:
    assert render_logfmt(None, "", {"x": value}) == f"x={text}"


def test_what_libraries_log_has_the_same_form(capsys: pytest.CaptureFixture[str]) -> None:
    apply_log_settings(LogSettings(level="info", form="json", shows_source=True))
    library = logging.getLogger("a.library")
    library.info("too much")
    library.warning("it is %s", "late")
    try:
        raise KeyError("k")
    except KeyError:
        library.exception("failed")
    first, second = (json.loads(line) for line in capsys.readouterr().err.splitlines())
    assert (first["level"], first["event"], first["logger"]) == ("warning", "it is late", "a.library")
    assert first["source"].startswith("test_logging.py:")
    assert "KeyError" in second["exception"]


def test_logs_go_to_stdout_when_asked(capsys: pytest.CaptureFixture[str]) -> None:
    apply_log_settings(LogSettings(level="warn", form="json", exporter="stdout"))
    log_all()
    logging.getLogger("a.library").error("this too")
    captured = capsys.readouterr()
    assert [json.loads(line)["event"] for line in captured.out.splitlines()] == ["it failed", "this too"]
    assert captured.err == ""


def test_people_get_warnings_without_a_source(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("LOG_LEVEL", raising=False)
    set_up_logging()
    structlog.get_logger().info("unseen")
    structlog.get_logger().warning("seen", number=1)
    (line,) = capsys.readouterr().err.splitlines()
    assert "[warning  ] seen" in line
    assert line.endswith("number=1")


def test_a_level_that_is_none_is_told() -> None:
    with pytest.raises(ConfigError, match="LOG_LEVEL='loud': expected one of debug, info"):
        set_up_logging("Loud")


def test_a_line_for_google_cloud_has_its_fields() -> None:
    line = json.loads(
        render_google(None, "", {"event": "slice", "level": "warning", "timestamp": "t", "agent": "mine", "bars": 2})
    )
    assert line == {
        "severity": "WARNING",
        "message": "slice",
        "timestamp": "t",
        "logging.googleapis.com/labels": {"agent": "mine"},
        "bars": 2,
    }
