"""The report in a browser without network: nothing is asked for, nothing is cut off, everything works."""

from __future__ import annotations

import io
import itertools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from dry_work.backtest.report import write_report
from dry_work.clock import SECOND_NS
from dry_work.engine.result import EquityCurve, RunResult, build_curve, measure_equity
from dry_work.engine.runner import Runner
from dry_work.exchange.synthetic import synthetic_day
from dry_work.feeds.recorded import Recording
from dry_work.settings import RunSettings
from dry_work.wire.pubsub import encode_time

from .browser import Browser, serve_browser

CREATED_NS = 1_790_000_000 * SECOND_NS
SYMBOLS = ("SPY", "BTC/USD")
SIZES = {"desktop": (1280, 900, False), "phone": (390, 844, True), "small phone": (360, 640, True)}

CHARTS = ("chart-equity", "chart-drawdown", "chart-exposure", "chart-price")
# What stands beyond the right edge of the page, hidden parts and what is inside a chart left out.
CUT_OFF = """
[...document.body.querySelectorAll("*")].filter(e => !e.closest("svg, .unseen, script") && e.offsetWidth
  && (e.getBoundingClientRect().right > innerWidth + 0.5 || e.getBoundingClientRect().left < -0.5))
  .map(e => e.tagName + "." + e.className)
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunResult, Recording]:
    """A local run: exchange, hub and Pub/Sub, in lock-step."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("run"))
        settings = RunSettings(symbols=SYMBOLS, agent="agents.sma_cross:SmaCross", params={}, mode="local")
        return Runner(settings, tell=lambda _: None).run(), synthetic_day(SYMBOLS)


@pytest.fixture(scope="module")
def page(run: tuple[RunResult, Recording], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("report") / "out.html"
    write_report(path, *run, created_ns=CREATED_NS)
    return path


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    yield from serve_browser(tmp_path_factory)


@pytest.fixture
def browser(chromium: Browser) -> Iterator[Browser]:
    """The browser at desktop size; in the end nothing was asked of the network, and nothing was complained of."""
    chromium.requests.clear()
    chromium.errors.clear()
    chromium.use_media()
    chromium.resize(1280, 900)
    yield chromium
    assert chromium.errors == []
    assert [url for url in chromium.requests if not url.startswith(("file:", "data:"))] == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", list(SIZES))
def test_nothing_is_cut_off_and_every_chart_is_drawn(browser: Browser, page: Path, size: str, scheme: str) -> None:
    width, height, is_phone = SIZES[size]
    browser.use_media(scheme=scheme)
    browser.resize(width, height, is_phone=is_phone)
    browser.open(page)
    assert browser.evaluate("[document.documentElement.scrollWidth, innerWidth]") == [width, width]
    assert browser.evaluate(CUT_OFF) == []
    for chart in CHARTS:
        drawn = f"[...document.querySelectorAll('#{chart} svg svg path')].map(p => p.getAttribute('d').length)"
        assert max(browser.evaluate(drawn)) > 100, chart
        assert browser.evaluate(f"document.querySelectorAll('#{chart} text').length") >= 2
    assert browser.evaluate("document.querySelectorAll('#trades tbody tr').length") > 5


def colours_of(picture: bytes) -> int:
    """Return how many colours the picture shows in more than a few pixels."""
    from matplotlib.image import imread

    pixels = (imread(io.BytesIO(picture), format="png")[..., :3] * 255).astype(np.int64)
    _, counts = np.unique(pixels.reshape(-1, 3) @ [65536, 256, 1], return_counts=True)
    return int(np.count_nonzero(counts > 20))


def test_the_colours_follow_the_reader(browser: Browser, page: Path) -> None:
    pytest.importorskip("matplotlib", reason="the extra `plot` is not installed")
    backgrounds = []
    for scheme in ("light", "dark"):
        browser.use_media(scheme=scheme)
        browser.open(page)
        backgrounds.append(browser.evaluate("getComputedStyle(document.body).backgroundColor"))
        assert colours_of(browser.take_picture(whole=False)) > 10
    assert backgrounds == ["rgb(252, 251, 248)", "rgb(19, 21, 24)"]
    browser.use_media(scheme="dark", medium="print")
    assert browser.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert browser.evaluate("getComputedStyle(document.querySelector('.tools')).display") == "none"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_from_its_ground(browser: Browser, page: Path, scheme: str) -> None:
    browser.use_media(scheme=scheme)
    browser.open(page)
    light = """(name) => {
      const hex = getComputedStyle(document.documentElement).getPropertyValue(name).trim().slice(1);
      const full = hex.length === 3 ? [...hex].map(c => c + c).join("") : hex;
      const [r, g, b] = [0, 2, 4].map(i => parseInt(full.slice(i, i + 2), 16) / 255)
        .map(c => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
      return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    }"""
    ground = browser.evaluate(f"({light})('--paper')")
    for name in ("--ink", "--muted", "--agent", "--sell", "--gain", "--loss"):
        value = browser.evaluate(f"({light})('{name}')")
        assert (max(value, ground) + 0.05) / (min(value, ground) + 0.05) >= 4.5, name


def test_every_chart_table_and_control_has_a_name(browser: Browser, page: Path) -> None:
    browser.open(page)
    assert browser.evaluate("document.querySelectorAll('h1').length") == 1
    assert browser.evaluate("[...document.querySelectorAll('.chart')].every(c => c.ariaLabel && c.role === 'img')")
    assert browser.evaluate("[...document.querySelectorAll('table')].every(t => t.caption.textContent)")
    assert browser.evaluate("[...document.querySelectorAll('thead th')].every(h => h.scope === 'col' && h.textContent)")
    assert browser.evaluate("[...document.querySelectorAll('select')].every(s => s.labels.length === 1)")
    assert browser.evaluate("[...document.querySelectorAll('button')].every(b => b.ariaLabel || b.textContent)")
    levels = browser.evaluate("[...document.querySelectorAll('h1, h2, h3')].map(h => Number(h.tagName[1]))")
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))


def ticks(browser: Browser, chart: str) -> list[str]:
    found = browser.evaluate(f"[...document.querySelectorAll('#{chart} text')].map(t => t.textContent)")
    return [str(each) for each in found]


def test_a_drag_zooms_all_charts_and_a_double_click_shows_all_again(browser: Browser, page: Path) -> None:
    browser.open(page)
    before = {chart: ticks(browser, chart) for chart in ("chart-exposure", "chart-price")}
    x, y, width, height = browser.box("#chart-equity")
    browser.drag(x + width * 0.3, y + height / 2, x + width * 0.4, y + height / 2)
    for chart, labels in before.items():
        assert ticks(browser, chart) != labels
    assert browser.evaluate("document.querySelectorAll('#chart-price path.up, #chart-price path.down').length") > 0
    browser.click("[data-zoom=all]")
    assert {chart: ticks(browser, chart) for chart in before} == before


def test_the_pointer_reads_values(browser: Browser, page: Path) -> None:
    browser.open(page)
    x, y, width, height = browser.box("#chart-equity")
    browser.call("Input.dispatchMouseEvent", type="mouseMoved", x=x + width / 2, y=y + height / 2)
    browser.settle()
    assert "Jun 2024" in browser.evaluate("document.querySelector('#chart-equity-readout').textContent")
    assert "close" in browser.evaluate("document.querySelector('#chart-price-readout').textContent")


def test_fingers_read_values_and_zoom(browser: Browser, page: Path) -> None:
    browser.resize(390, 844, is_phone=True)
    browser.open(page)
    before = ticks(browser, "chart-exposure")
    x, y, width, height = browser.box("#chart-equity")

    def touch(kind: str, *places: float) -> None:
        points = [{"x": x + width * place, "y": y + height / 2, "id": i} for i, place in enumerate(places)]
        browser.call("Input.dispatchTouchEvent", type=kind, touchPoints=points)
        browser.settle()

    touch("touchStart", 0.2)
    touch("touchMove", 0.5)
    assert "Jun 2024" in browser.evaluate("document.querySelector('#chart-equity-readout').textContent")
    assert ticks(browser, "chart-exposure") == before
    touch("touchEnd")
    touch("touchStart", 0.4)
    touch("touchStart", 0.4, 0.5)
    touch("touchMove", 0.2, 0.7)
    touch("touchEnd")
    assert ticks(browser, "chart-exposure") != before


def test_a_symbol_is_chosen(browser: Browser, page: Path) -> None:
    browser.open(page)
    for number, symbol in enumerate(SYMBOLS):
        browser.evaluate(
            f"(() => {{ const s = document.querySelector('#symbol'); s.value = '{number}'; "
            "s.dispatchEvent(new Event('change')); })()"
        )
        browser.settle()
        assert browser.evaluate("document.querySelector('#price-title').textContent") == symbol
        assert symbol in browser.evaluate("document.querySelector('#chart-price').ariaLabel")


def column(browser: Browser, number: int) -> list[str]:
    found = browser.evaluate(
        f"[...document.querySelectorAll('#trades tbody td:nth-child({number})')].map(c => c.textContent)"
    )
    return [str(each) for each in found]


def choose(browser: Browser, control: str, value: str) -> None:
    browser.evaluate(
        f"(() => {{ const s = document.querySelector('#{control}'); s.value = '{value}'; "
        "s.dispatchEvent(new Event('change')); })()"
    )


def test_trades_are_sorted_and_filtered(browser: Browser, page: Path) -> None:
    browser.open(page)
    everything = column(browser, 11)
    browser.click("#trades thead th:nth-child(11) button")
    values = [float(text.replace("−", "-").replace(",", "")) for text in column(browser, 11)]
    assert values == sorted(values, reverse=True)
    assert len(set(values)) > 3
    assert browser.evaluate("document.querySelector('#trades thead th:nth-child(11)').ariaSort") == "descending"
    choose(browser, "trade-kind", "won")
    assert column(browser, 11) == [text for text in sorted(everything, key=_amount, reverse=True) if _amount(text) > 0]
    choose(browser, "trade-kind", "all")
    choose(browser, "trade-symbol", "BTC/USD")
    assert set(column(browser, 2)) == {"BTC/USD"}
    choose(browser, "trade-kind", "short")
    assert column(browser, 2) == []
    assert "none of" in browser.evaluate("document.querySelector('#trade-count').textContent")


def _amount(text: str) -> float:
    return float(text.replace("−", "-").replace(",", ""))


def test_a_trade_shows_itself_in_the_chart(browser: Browser, page: Path) -> None:
    browser.open(page)
    before = ticks(browser, "chart-price")
    symbol = column(browser, 2)[-1]
    browser.click("#trades tbody tr:last-child button")
    assert browser.evaluate("document.querySelector('#price-title').textContent") == symbol
    assert ticks(browser, "chart-price") != before


def test_thousands_of_trades_stay_light(browser: Browser, tmp_path: Path) -> None:
    recording = synthetic_day(("SPY",))
    ends = recording.slice_ends().tolist()
    fills = [
        {"time": encode_time(ends[i * len(ends) // 12_000]), "symbol": "SPY", "side": ("buy", "sell")[i % 2],
         "qty": 1.0, "price": 500.0 + i % 7, "commission": 0.01}
        for i in range(12_000)
    ]  # fmt: skip
    curve = EquityCurve(end_ns=recording.slice_ends(), value=np.linspace(1e5, 9.9e4, len(ends)))
    result = RunResult(
        mode="backtest", engine="lean", agent="<b>a</b>:</script>", params={}, symbols=("SPY",),
        bars={"SPY": len(ends)}, orders=[], fills=fills, positions={}, equity=measure_equity(1e5, curve), seconds=1.0,
        curve=curve,
    )  # fmt: skip
    path = tmp_path / "many.html"
    write_report(path, result, recording, created_ns=CREATED_NS)
    browser.open(path)
    assert browser.evaluate("document.querySelectorAll('*').length") < 3000
    assert browser.evaluate("document.querySelector('h1').textContent") == "</script>"
    assert browser.evaluate("document.querySelector('#trade-count').textContent").startswith("1–50 of 6,000")
    browser.click("#trade-on")
    assert column(browser, 1)[0] == "51"
    assert "fills; zoom in" in "".join(ticks(browser, "chart-price"))


def test_a_run_without_bars_opens_without_a_complaint(browser: Browser, tmp_path: Path) -> None:
    curve = build_curve([])
    result = RunResult(
        mode="local", engine="live", agent="a:B", params={}, symbols=("SPY",), bars={"SPY": 0}, orders=[], fills=[],
        positions={}, equity=measure_equity(1e5, curve), seconds=0.1, curve=curve,
    )  # fmt: skip
    path = tmp_path / "empty.html"
    write_report(path, result, synthetic_day(("SPY",)), created_ns=CREATED_NS)
    browser.open(path)
    assert "Nothing was traded." in browser.evaluate("document.body.textContent")


def test_long_names_and_large_numbers_cut_nothing_off(browser: Browser, tmp_path: Path) -> None:
    recording = synthetic_day(("SPY",))
    ends = recording.slice_ends()
    large = 1e13
    fills = [
        {"time": encode_time(int(ends[at])), "symbol": "SPY", "side": side, "qty": 123_456_789.123456789,
         "price": 123_456.789, "commission": 1e9}
        for at, side in ((5, "buy"), (300, "sell"), (310, "sell"))
    ]  # fmt: skip
    curve = EquityCurve(end_ns=ends, value=np.linspace(large, 1.5 * large, len(ends)))
    result = RunResult(
        mode="backtest", engine="lean", agent="agents." + "x" * 150,
        params={"p" * 80: "v" * 300, "l": list(range(200))}, symbols=("SPY",), bars={"SPY": len(ends)},
        orders=[], fills=fills, positions={}, equity=measure_equity(large, curve), seconds=1.0, curve=curve,
        fingerprint="f" * 64, notes=["n" * 300],
        assumptions={"k" * 60: "v" * 200},
    )  # fmt: skip
    path = tmp_path / "long.html"
    write_report(path, result, recording, created_ns=CREATED_NS)
    for width in (1280, 700, 390, 360):
        browser.resize(width, 800, is_phone=width < 500)
        browser.open(path)
        assert browser.evaluate("[document.documentElement.scrollWidth, innerWidth]") == [width, width]
        wide = "[...document.querySelectorAll('.chart')].flatMap(c => [...c.querySelectorAll('text')].filter(t => "
        wide += "t.getBoundingClientRect().right > c.getBoundingClientRect().right + 0.5)).map(t => t.textContent)"
        assert browser.evaluate(wide) == []
