"""Actions over NATS, whatever a stranger has sent: each is an order, or is refused; none fails otherwise."""

from __future__ import annotations

import os
import random

from dry_work.errors import CodecError
from dry_work.proto.tradesvc.v0 import tradesvc_pb2 as pb
from dry_work.wire.nats_subjects import Subjects
from dry_work.wire.protobuf_tradesvc import decode_trade

INPUTS = int(os.environ.get("DRY_WORK_FUZZ_INPUTS", "5000"))
_TEXTS = (
    "",
    "1",
    "-1",
    "0",
    "1.5",
    "1e9",
    "NaN",
    "Infinity",
    "0x10",
    "SPY",
    "btc/usd",
    "BRK.B",
    "x" * 300,
    "\u00df",
    "\x00",
)
_TOKENS = ("a", "ALL", "", "a.b", "x" * 128, "x" * 129, "\u00fc", "a b", "*", ">", "my-order-1")


def test_any_order_is_taken_whole_or_refused_with_a_reason() -> None:
    rng = random.Random(11)
    subjects = Subjects("nalpaca")
    taken = refused = 0
    for _ in range(INPUTS):
        data = bytearray(_build_trade(rng))
        for _ in range(rng.choice((0, 0, 1, 3))):
            data[rng.randrange(len(data)) if data else 0 : rng.randrange(len(data) + 1)] = rng.randbytes(
                rng.randrange(4)
            )
        token = rng.choice(_TOKENS)
        action = subjects.parse_action(f"nalpaca.action.v0.{rng.choice(('orders', 'cancel', 'x'))}.{token}")
        try:
            body = decode_trade(bytes(data), client_order_id=action.token)
        except CodecError:
            refused += 1
            continue
        taken += 1
        assert {"symbol", "side", "type", "time_in_force", "client_order_id"} <= body.keys()
        assert ("qty" in body) != ("notional" in body)
    assert taken
    assert refused


def _build_trade(rng: random.Random) -> bytes:
    trade = pb.Trade(symbol="SPY", qty="1", side=pb.SIDE_BUY, order_type=pb.ORDER_TYPE_MARKET, tif=pb.TIME_IN_FORCE_DAY)
    for _ in range(rng.randrange(3)):
        name = rng.choice(("symbol", "qty", "notional", "limit_price", "stop_price", "trail_price", "trail_percent"))
        setattr(trade, name, rng.choice(_TEXTS))
    for name in ("side", "order_type", "tif", "class", "position_intent"):
        if rng.random() < 0.1:
            setattr(trade, name, rng.randrange(-2, 12))
    data: bytes = trade.SerializeToString()
    return data
