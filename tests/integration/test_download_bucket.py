"""A download into a bucket."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from dry_work.cli import main
from dry_work.exchange.server import ExchangeServer
from dry_work.exchange.synthetic import synthetic_day
from dry_work.feeds.recorded import read_bars
from dry_work.storage import open_storage

from .download_servers import DataServer, pass_on
from .test_storage_gcs import prefix, server  # noqa: F401 - fixtures

DAY = "2024-06-11"
DEADLINE_S = 60.0


def test_a_bucket_gets_the_same_files_as_a_folder(
    prefix: str,  # noqa: F811
    clean_environment: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    recording = synthetic_day(["BTC/USD", "ETH/USD"], minutes=90)
    exchange = ExchangeServer(recording, speed=1e8)
    exchange.start()
    proxy = DataServer(pass_on(exchange.url))
    proxy.page_rows = 40
    monkeypatch.setenv("ALPACA_DATA_URL", proxy.url)
    try:
        deadline = time.monotonic() + DEADLINE_S
        while exchange.describe()["state"] != "ended":
            assert time.monotonic() < deadline
            time.sleep(0.01)
        for out in (prefix, "folder", prefix):
            before = len(proxy.requests)
            with pytest.raises(SystemExit) as ended:
                main(["download", "--symbols", "BTC/USD,ETH/USD", "--start", DAY, "--end", DAY, "--out", out])
            assert ended.value.code == 0
        assert len(proxy.requests) == before
    finally:
        proxy.stop()
        exchange.stop()
    assert f"1m bars of 2 symbols: all there in {prefix}" in capsys.readouterr().out
    bucket = open_storage(prefix)
    names = [f"bars/1m/{pair}/{DAY}.parquet" for pair in ("BTC-USD", "ETH-USD")]
    assert [file.name for file in bucket.list("bars")] == names
    for name in names:
        assert bucket.read(name) == (clean_environment / "folder" / name).read_bytes()
    bucket.close()
    found = read_bars([clean_environment / "folder"])
    for symbol in recording.symbols:
        assert found.columns(symbol)["close"].tobytes() == recording.columns(symbol)["close"].tobytes()
