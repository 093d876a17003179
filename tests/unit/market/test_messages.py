import msgspec
import pytest

from dry_work.clock import HOUR_NS, MINUTE_NS
from dry_work.market.messages import NO_EXTRA, Bar, Envelope, News, Slice, Watermark

BAR = Bar(symbol="SPY", ts_event_ns=10 * MINUTE_NS, open=1.0, high=2.0, low=0.5, close=1.5, volume=7.0)


def test_a_bar_ends_one_length_after_its_start():
    assert BAR.end_ns == 11 * MINUTE_NS
    assert msgspec.structs.replace(BAR, length_ns=HOUR_NS).end_ns == 70 * MINUTE_NS


@pytest.mark.parametrize(
    "message",
    [
        BAR,
        News(symbols=("SPY",), headline="Up"),
        Watermark(slice=1, end_ns=MINUTE_NS, bars=0),
        Envelope(topic="market-data", message=BAR),
        Slice(end_ns=MINUTE_NS, bars=(BAR,)),
    ],
)
def test_messages_cannot_be_changed(message):
    name = type(message).__struct_fields__[0]
    with pytest.raises(AttributeError):
        setattr(message, name, None)


def test_a_bar_without_extra_fields_shares_one_mapping_that_cannot_be_changed():
    assert BAR.extra is NO_EXTRA
    with pytest.raises(TypeError):
        BAR.extra["rsi"] = 1.0  # type: ignore[index]
    assert dict(NO_EXTRA) == {}


def test_optional_fields_are_absent_and_not_zero():
    assert (BAR.trade_count, BAR.vwap, BAR.revision, BAR.source, BAR.ts_recv_ns) == (None, None, 0, "", 0)
    assert Slice(end_ns=0, bars=()).number is None


def test_fields_are_given_by_name():
    with pytest.raises(TypeError):
        Bar("SPY", 0, 1.0, 1.0, 1.0, 1.0, 1.0)  # type: ignore[misc]


def test_equal_values_are_equal_messages():
    assert msgspec.structs.replace(BAR) == BAR
    assert msgspec.structs.replace(BAR, close=1.25) != BAR
