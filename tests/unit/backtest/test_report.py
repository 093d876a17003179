from __future__ import annotations

import base64
import hashlib
import json
import re
import stat
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dry_work.backtest import report
from dry_work.backtest.report import build_report, charted_symbols, make_buckets, write_report
from dry_work.backtest.report_page import duration, number, percent
from dry_work.backtest.series import build_series
from dry_work.clock import DAY_NS, HOUR_NS, MINUTE_NS, SECOND_NS
from dry_work.engine.result import RunResult
from dry_work.errors import StorageError
from dry_work.feeds.recorded import Recording

from .results import fill, recording_of, result_of, traded

CREATED_NS = 1_790_000_000 * SECOND_NS
EVIL = "</script><script>alert(1)</script><img src=x onerror=alert(2)>&\"'\u2028]]>"


class Reader(HTMLParser):
    """Collects the elements, the text and the scripts of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.text = ""
        self._inside = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._inside = tag

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside == "script":
            self.scripts.append(data)
        elif self._inside != "style":
            self.text += data + " "

    @property
    def data(self) -> dict[str, Any]:
        loaded: dict[str, Any] = json.loads(self.scripts[0])
        return loaded


def small_run() -> tuple[RunResult, Recording]:
    recording = recording_of({"SPY": [100.0, 101.0, 99.5, 102.25], "BTC/USD": [9.5, 9.75, 9.25, 9.0]})
    ends = recording.slice_ends().tolist()
    fills = [
        fill(ends[1], "buy", 10, 100.0, commission=0.25),
        fill(ends[2], "sell", 0.5, 9.75, "BTC/USD"),
        fill(ends[3], "sell", 10, 99.5, commission=0.25),
    ]
    return traded(recording, fills), recording


def test_the_page_tells_what_was_run() -> None:
    result, recording = small_run()
    page = Reader(build_report(result, recording, created_ns=CREATED_NS))
    for text in (
        "SmaCross", "Backtest", "agents.sma_cross:SmaCross", "1 Jan 2024, 00:00 – 1 Jan 2024, 00:04 UTC",
        "SPY, BTC/USD", "fast_period", "lean", recording.fingerprint, "at the next open", "252 days a year",
        "21 Sep 2026",
    ):  # fmt: skip
        assert text in page.text
    assert ("title", {}) in page.tags


def test_the_page_holds_the_figures_and_a_dash_for_what_is_not_defined() -> None:
    result, recording = small_run()
    text = re.sub(r"\s+", " ", Reader(build_report(result, recording, created_ns=CREATED_NS)).text)
    assert "Sharpe ratio –" in text
    assert "closed 1 (1 long, 0 short)" in text
    assert "commission 0.50" in text
    assert "worst −5.50" in text
    assert "nan" not in text.lower().replace("finance", "")


def test_the_script_gets_prices_trades_and_executions() -> None:
    result, recording = small_run()
    data = Reader(build_report(result, recording, created_ns=CREATED_NS)).data
    assert data["slices"] == 4
    assert data["times"] == {
        "first": 1_704_067_260_000,
        "unit": 60_000,
        "steps": [1, 1, 1],
        "step": 1,
        "length": 60_000,
    }
    assert data["equity"]["last"] == pytest.approx(result.curve.value.tolist() if result.curve else [])
    assert [price["symbol"] for price in data["prices"]] == ["SPY", "BTC/USD"]
    assert data["prices"][0]["close"] == [100.0, 101.0, 99.5, 102.25]
    assert data["prices"][0]["open"] == [100.0, 100.0, 101.0, 99.5]
    assert data["executions"] == [[[1, 1, 1, 100.0, 10.0], [3, 0, 0, 99.5, 10.0]], [[2, 0, 1, 9.75, 0.5]]]
    closed, still_open = data["trades"]
    assert closed[:7] == [1, 0, 1, 1_704_067_320_000, 1_704_067_440_000, 1, 3]
    assert closed[12] == -5.5
    assert (still_open[1], still_open[2], still_open[4], still_open[8]) == (1, -1, None, 0.5)


def test_nothing_from_the_data_becomes_markup() -> None:
    recording = recording_of({EVIL: [1.0, 2.0, 3.0]})
    ends = recording.slice_ends().tolist()
    result = result_of(
        recording,
        fills=[fill(ends[1], "buy", 1, 1.5, EVIL)],
        agent=f"{EVIL}:{EVIL}", params={EVIL: EVIL}, engine=EVIL, mode=EVIL, notes=[EVIL], fingerprint=EVIL,
        assumptions={EVIL: EVIL},
    )  # fmt: skip
    for title in (None, EVIL):
        text = build_report(result, recording, title=title, created_ns=CREATED_NS)
        page = Reader(text)
        assert len(page.scripts) == 2
        assert text.count("</script>") == 2
        assert not [tag for tag, _ in page.tags if tag == "img"]
        assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on")]
        assert page.data["symbols"] == [EVIL]
        assert page.text.count(EVIL) > 5


def test_the_page_loads_nothing_and_allows_nothing_else_to_run() -> None:
    result, recording = small_run()
    page = build_report(result, recording, created_ns=CREATED_NS)
    read = Reader(page)
    assert set(re.findall(r"https?://[^\"'\s)]+", page)) == {"http://www.w3.org/2000/svg"}
    assert "@import" not in page
    assert "url(" not in page
    assert not [tag for tag, attributes in read.tags if "src" in attributes]
    [policy] = [str(a["content"]) for tag, a in read.tags if a.get("http-equiv") == "Content-Security-Policy"]
    digest = base64.b64encode(hashlib.sha256(read.scripts[1].encode()).digest()).decode()
    assert policy.startswith("default-src 'none';")
    assert f"script-src 'sha256-{digest}'" in policy
    assert "unsafe" not in policy


def test_equal_runs_give_equal_bytes() -> None:
    result, recording = small_run()
    pages = {build_report(result, recording, created_ns=CREATED_NS) for _ in range(2)}
    assert len(pages) == 1


@pytest.mark.parametrize("curve", ["empty", "none"])
def test_a_run_without_bars_has_a_page(curve: str) -> None:
    recording = recording_of({"SPY": [100.0]})
    result = result_of(recording, [], **({"curve": None} if curve == "none" else {}))
    page = Reader(build_report(result, recording, created_ns=CREATED_NS))
    assert "No slice of bars was run" in page.text
    assert "Nothing was traded." in page.text
    assert page.data == {"slices": 0, "symbols": ["SPY"], "prices": []}


def test_an_account_below_nothing_has_a_page() -> None:
    recording = recording_of({"SPY": [100.0] * 4}, length_ns=DAY_NS)
    page = Reader(build_report(result_of(recording, [5.0, -1.0, 0.0, 2.0]), recording, created_ns=CREATED_NS))
    assert page.data["long"]["last"] == [0.0, None, None, 0.0]


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=200), st.integers(1, 40))
def test_buckets_keep_every_extreme(values: list[float], limit: int) -> None:
    column = np.array(values)
    buckets = make_buckets(column, limit)
    assert len(buckets.last) <= limit
    assert (buckets.low.min(), buckets.high.max()) == (column.min(), column.max())
    for number_, start in enumerate(range(0, len(values), buckets.step)):
        piece = values[start : start + buckets.step]
        assert (buckets.low[number_], buckets.high[number_], buckets.last[number_]) == (
            min(piece),
            max(piece),
            piece[-1],
        )


def test_long_runs_are_cut_into_buckets_and_the_page_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "CURVE_BUCKETS", 10)
    monkeypatch.setattr(report, "PRICE_BUCKETS", 10)
    monkeypatch.setattr(report, "LEAST_PRICE_BUCKETS", 5)
    closes = np.full(100, 50.0)
    closes[33], closes[71] = 80.0, 20.0
    recording = recording_of({"SPY": closes.tolist(), "IBM": [5.0] * 30}, offsets={"IBM": 70})
    values = np.full(100, 100_000.0)
    values[55] = 40_000.0
    page = Reader(build_report(result_of(recording, values.tolist()), recording, created_ns=CREATED_NS))
    equity, prices = page.data["equity"], page.data["prices"]
    assert (equity["step"], len(equity["last"]), min(equity["low"])) == (10, 10, 40_000.0)
    assert min(page.data["drawdown"]["low"]) == -0.6
    assert (prices[0]["step"], len(prices[0]["close"])) == (20, 5)
    assert (max(prices[0]["high"]), min(prices[0]["low"])) == (80.5, 19.5)
    assert prices[1]["close"] == [None, None, None, 5.0, 5.0]
    assert len(page.data["times"]["steps"]) == 9
    assert "A point stands for 10 slices" in page.text


def test_of_too_many_symbols_those_traded_most_have_charts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "PRICE_BUCKETS", 800)
    recording = recording_of({symbol: [10.0, 11.0] for symbol in ("A", "B", "C", "D")})
    at = int(recording.slice_ends()[1])
    result = result_of(recording, fills=[fill(at, "buy", 5, 11.0, "D"), fill(at, "sell", 1, 11.0, "B")])
    assert charted_symbols(result, build_series(result, recording)) == ["B", "D"]
    page = Reader(build_report(result, recording, created_ns=CREATED_NS))
    assert [price["symbol"] for price in page.data["prices"]] == ["B", "D"]
    assert "charts show the 2 symbols traded most, of 4 with prices" in page.text


def test_more_trades_than_are_listed_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "LISTED_TRADES", 3)
    recording = recording_of({"SPY": [10.0] * 20})
    fills = [fill(at, ("buy", "sell")[i % 2], 1, 10.0) for i, at in enumerate(recording.slice_ends().tolist())]
    page = Reader(build_report(traded(recording, fills), recording, created_ns=CREATED_NS))
    assert [row[0] for row in page.data["trades"]] == [8, 9, 10]
    assert "hold the last 3 of 10 trades" in page.text
    assert "10 trades in 20 slices" in page.text


def test_money_that_no_trade_accounts_for_is_a_note() -> None:
    recording = recording_of({"SPY": [10.0] * 2})
    page = Reader(build_report(result_of(recording, [100_000.0, 100_250.0]), recording, created_ns=CREATED_NS))
    assert "250.00 of the change of equity is in no trade" in page.text
    result, recording = small_run()
    assert "is in no trade" not in build_report(result, recording, created_ns=CREATED_NS)


def test_a_report_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    result, recording = small_run()
    path = tmp_path / "out.html"
    path.write_text("older")
    write_report(path, result, recording, created_ns=CREATED_NS)
    assert path.read_text(encoding="utf-8") == build_report(result, recording, created_ns=CREATED_NS)
    assert [each.name for each in tmp_path.iterdir()] == ["out.html"]
    assert stat.S_IMODE(path.stat().st_mode) & stat.S_IRUSR
    for wrong in (tmp_path / "nowhere" / "out.html", tmp_path):
        with pytest.raises(StorageError, match=re.escape(str(wrong))):
            write_report(wrong, result, recording, created_ns=CREATED_NS)
    assert [each.name for each in tmp_path.iterdir()] == ["out.html"]


def test_the_file_about_many_bars_stays_small() -> None:
    rng = np.random.default_rng(1)
    closes = np.round(100 * np.exp(np.cumsum(rng.normal(0, 0.001, 200_000))), 2)
    recording = recording_of({"SPY": closes.tolist()})
    page = build_report(result_of(recording, (closes * 1000).tolist()), recording, created_ns=CREATED_NS)
    assert len(page) < 700_000


@pytest.mark.parametrize(
    ("value", "decimals", "text"),
    [(None, 2, "–"), (-1234.5, 2, "−1,234.50"), (-0.001, 2, "0.00"), (0.0, 0, "0"), (12.0, 1, "12.0")],
)
def test_numbers_have_separators_and_a_true_minus(value: float | None, decimals: int, text: str) -> None:
    assert number(value, decimals) == text


def test_percentages_and_lengths_of_time() -> None:
    assert percent(0.0123, signed=True) == "+1.23 %"
    assert percent(0.000001, signed=True) == "0.00 %"
    assert percent(-0.5, 0) == "−50 %"
    lengths = [None, 5 * SECOND_NS, 61 * MINUTE_NS, 23 * HOUR_NS, 36 * HOUR_NS, 2000 * DAY_NS]
    assert [duration(each) for each in lengths] == ["–", "5 s", "1 h 1 min", "23 h 0 min", "1.5 days", "2,000 days"]


def test_a_picture_is_written(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="the extra `plot` is not installed")
    from dry_work.backtest.plot import write_plot

    result, recording = small_run()
    empty = recording_of({"SPY": [100.0]})
    wide = recording_of({symbol: [10.0, 11.0, 12.0] for symbol in "ABCDEF"}, length_ns=DAY_NS)
    runs = {
        "small": (result, recording),
        "empty": (result_of(empty, []), empty),
        "wide": (result_of(wide, agent="a:$x_{$</script>"), wide),
    }
    for name, (run, bars) in runs.items():
        path = tmp_path / f"{name}.png"
        write_plot(path, run, bars)
        content = path.read_bytes()
        assert content.startswith(b"\x89PNG")
        width, height = (int.from_bytes(content[at : at + 4], "big") for at in (16, 20))
        assert width == 1440
        assert height > 400
    assert sorted(each.name for each in tmp_path.iterdir()) == ["empty.png", "small.png", "wide.png"]


def test_a_picture_of_many_fills_is_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="the extra `plot` is not installed")
    from dry_work.backtest.plot import write_plot

    recording = recording_of({"SPY": (100 + np.sin(np.arange(600) / 9)).tolist()})
    fills = [fill(at, ("buy", "sell")[i % 2], 1, 100.0) for i, at in enumerate(recording.slice_ends().tolist())]
    write_plot(tmp_path / "out.png", result_of(recording, fills=fills), recording)
    assert (tmp_path / "out.png").stat().st_size > 10_000
