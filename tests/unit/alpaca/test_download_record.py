from __future__ import annotations

import json
from datetime import date
from pathlib import Path

import pyarrow as pa
import pytest

from dry_work.alpaca.download_pages import Page, build_table
from dry_work.alpaca.download_plan import Series, Unit, build_series
from dry_work.alpaca.download_record import DownloadRecord, WorkFolder
from dry_work.clock import DAY_NS
from dry_work.errors import ConfigError, LeaseHeldError, StorageError
from dry_work.storage import open_storage
from dry_work.wire.pubsub import parse_time

DAY = parse_time("2024-01-02")
SPY = build_series(["SPY"], kind="bars")[0]
UNIT = Unit(SPY, DAY, DAY + DAY_NS)
URL = "https://data.example"


@pytest.fixture
def record(tmp_path: Path) -> DownloadRecord:
    return DownloadRecord(open_storage(tmp_path / "data"))


def page(number: int, token: str | None) -> Page:
    bar = {"t": f"2024-01-02T14:{number:02d}:00Z", "o": 1, "h": 1, "l": 1, "c": number, "v": 1}
    return Page(build_table([bar], kind="bars", symbol="SPY"), token)


def test_nothing_is_done_at_first(record: DownloadRecord) -> None:
    assert record.done(SPY, []) == []


def test_spans_that_touch_become_one(record: DownloadRecord) -> None:
    record.add(SPY, (DAY, DAY + DAY_NS), {date(2024, 1, 2): 5})
    record.add(SPY, (DAY + DAY_NS, DAY + 2 * DAY_NS), {date(2024, 1, 3): 0})
    record.add(SPY, (DAY + 9 * DAY_NS, DAY + 10 * DAY_NS), {})
    done = [(DAY, DAY + 2 * DAY_NS), (DAY + 9 * DAY_NS, DAY + 10 * DAY_NS)]
    assert record.done(SPY, [date(2024, 1, 2)]) == done


def test_a_day_whose_file_is_gone_is_not_done(record: DownloadRecord) -> None:
    record.add(SPY, (DAY, DAY + 3 * DAY_NS), {date(2024, 1, 2): 5, date(2024, 1, 4): 5})
    assert record.done(SPY, [date(2024, 1, 4)]) == [(DAY + DAY_NS, DAY + 3 * DAY_NS)]


def test_daily_bars_are_in_files_by_year(record: DownloadRecord) -> None:
    (daily,) = build_series(["SPY"], kind="bars", timeframe="1d")
    record.add(daily, (DAY, DAY + 3 * DAY_NS), {date(2024, 1, 2): 1, date(2024, 1, 3): 1})
    assert record.done(daily, [date(2024, 1, 1)]) == [(DAY, DAY + 3 * DAY_NS)]
    assert record.done(daily, []) == [(DAY + 2 * DAY_NS, DAY + 3 * DAY_NS)]


def test_each_series_has_its_own_record(record: DownloadRecord) -> None:
    record.add(SPY, (DAY, DAY + DAY_NS), {})
    for kind, timeframe in (("bars", "5m"), ("trades", "1m")):
        (other,) = build_series(["SPY"], kind=kind, timeframe=timeframe)  # type: ignore[arg-type]
        assert record.done(other, []) == []


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"feed": "iex"}, "holds SPY 1m bars of feed sip, raw, not of feed iex, raw"),
        ({"adjustment": "all"}, "holds SPY 1m bars of feed sip, raw, not of feed sip, all"),
    ],
)
def test_feeds_and_adjustments_are_not_mixed(
    record: DownloadRecord, tmp_path: Path, change: dict[str, str], sentence: str
) -> None:
    record.add(SPY, (DAY, DAY + DAY_NS), {})
    (other,) = build_series(["SPY"], kind="bars", **change)
    with pytest.raises(ConfigError, match=f"{tmp_path / 'data'} {sentence}: give the same again, or another folder"):
        record.done(other, [])
    with pytest.raises(ConfigError, match="--out"):
        record.add(other, (DAY, DAY + DAY_NS), {})


@pytest.mark.parametrize(
    "content",
    [
        b"", b"{", b"[]", b'{"symbol": "SPY"}',
        b'{"symbol": "SPY", "kind": "bars", "spans": [["yesterday", "today"]]}',
        b'{"symbol": "SPY", "kind": "bars", "rows": {"Monday": 1}}',
    ],
)  # fmt: skip
def test_a_damaged_record_is_named_with_what_to_do(record: DownloadRecord, tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "data" / ".downloads" / "bars" / "1m" / "SPY.json"
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"bars/1m/SPY\.json: is damaged .*delete it, and SPY 1m bars is downloaded"):
        record.done(SPY, [])


def test_a_record_is_json_for_people(record: DownloadRecord, tmp_path: Path) -> None:
    coin = Series(symbol="BTC/USD", kind="trades")
    record.add(coin, (DAY, DAY + DAY_NS), {date(2024, 1, 2): 3})
    assert json.loads((tmp_path / "data" / ".downloads" / "trades" / "BTC-USD.json").read_text()) == {
        "symbol": "BTC/USD", "kind": "trades", "timeframe": "", "feed": "", "adjustment": "",
        "spans": [["2024-01-02T00:00:00Z", "2024-01-03T00:00:00Z"]], "rows": {"2024-01-02": 3},
    }  # fmt: skip


def test_pages_come_back_in_order_with_the_next_token(tmp_path: Path) -> None:
    with WorkFolder(tmp_path) as work:
        kept = work.pages(UNIT, data_url=URL)
        assert kept.load() == []
        kept.add(1, page(1, "a"))
        kept.add(2, page(2, None))
        found = work.pages(UNIT, data_url=URL).load()
        assert [one.next_token for one in found] == ["a", None]
        assert pa.concat_tables([one.table for one in found]).column("close").to_pylist() == [1.0, 2.0]
        kept.clear()
        assert kept.load() == []


@pytest.mark.parametrize("damage", ["empty", "cut", "gone", "noise"])
def test_pages_from_a_damaged_one_on_are_left_out(tmp_path: Path, damage: str) -> None:
    with WorkFolder(tmp_path) as work:
        kept = work.pages(UNIT, data_url=URL)
        for number in (1, 2, 3):
            kept.add(number, page(number, str(number)))
        path = tmp_path / "pages" / "bars" / "1m" / "SPY" / "000002.arrow"
        content = path.read_bytes()
        if damage == "gone":
            path.unlink()
        else:
            path.write_bytes({"empty": b"", "cut": content[: len(content) // 2], "noise": b"x" * 100}[damage])
        assert [one.next_token for one in kept.load()] == ["1"]


def test_pages_of_another_unit_or_address_are_not_taken(tmp_path: Path) -> None:
    with WorkFolder(tmp_path) as work:
        work.pages(UNIT, data_url=URL).add(1, page(1, "a"))
        assert work.pages(Unit(SPY, DAY, DAY + 2 * DAY_NS), data_url=URL).load() == []
        work.pages(UNIT, data_url=URL).add(1, page(1, "a"))
        assert work.pages(UNIT, data_url="https://other.example").load() == []
        (other,) = build_series(["SPY"], kind="bars", adjustment="all")
        work.pages(UNIT, data_url=URL).add(1, page(1, "a"))
        assert work.pages(Unit(other, DAY, DAY + DAY_NS), data_url=URL).load() == []


def test_two_downloads_into_one_place_are_refused(tmp_path: Path) -> None:
    with WorkFolder(tmp_path) as first:
        with (
            pytest.raises(LeaseHeldError, match="another download into the same place is running"),
            WorkFolder(tmp_path),
        ):
            pass
        first.close()
        with WorkFolder(tmp_path):
            first.close()


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot be written"), WorkFolder(tmp_path / "file" / "below"):
        pass
    with WorkFolder(tmp_path / "work") as work:
        (tmp_path / "work" / "pages").write_text("")
        with pytest.raises(StorageError, match="cannot be written"):
            work.pages(UNIT, data_url=URL).add(1, page(1, "a"))
