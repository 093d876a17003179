"""The .proto files of cream.v1 say what is promised, and the modules beside them are made of them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from google.protobuf.descriptor import FieldDescriptor

from dry_work.proto.cream.v1 import common_pb2, execution_pb2, stream_proxy_pb2
from dry_work.proto.cream.write_modules import PROTOS, ROOT, write_modules

MODULES = (common_pb2, execution_pb2, stream_proxy_pb2)

# name=number, a type unless it is a text, `?` for optional, `*` for repeated
MESSAGES = {
    "StreamQuotesRequest": "symbols=1*",
    "StreamTradesRequest": "symbols=1*",
    "StreamBarsRequest": "symbols=1*",
    "StreamOptionQuotesRequest": "symbols=1* underlyings=2*",
    "StreamOptionTradesRequest": "symbols=1* underlyings=2*",
    "StreamOrderUpdatesRequest": "order_ids=1* symbols=2*",
    "GetConnectionStatusRequest": "",
    "StreamQuotesResponse": "quote=1:StockQuote offset=100:uint64",
    "StreamTradesResponse": "trade=1:StockTrade offset=100:uint64",
    "StreamBarsResponse": "bar=1:StockBar offset=100:uint64",
    "StreamOptionQuotesResponse": "quote=1:OptionQuoteUpdate offset=100:uint64",
    "StreamOptionTradesResponse": "trade=1:OptionTrade offset=100:uint64",
    "StreamOrderUpdatesResponse": "update=1:OrderUpdate offset=100:uint64",
    "GetConnectionStatusResponse": "status=1:ConnectionStatus",
    "StockQuote": "symbol=1 timestamp=2:Timestamp bid_exchange=3 bid_price=4:double bid_size=5:int32 ask_exchange=6 "
    "ask_price=7:double ask_size=8:int32 conditions=9* tape=10",
    "StockTrade": "symbol=1 timestamp=2:Timestamp trade_id=3:int64 exchange=4 price=5:double size=6:int32 "
    "conditions=7* tape=8",
    "StockBar": "symbol=1 timestamp=2:Timestamp open=3:double high=4:double low=5:double close=6:double "
    "volume=7:int64 vwap=8:double trade_count=9:int32",
    "OptionQuoteUpdate": "symbol=1 timestamp=2:Timestamp bid_exchange=3 bid_price=4:double bid_size=5:int32 "
    "ask_exchange=6 ask_price=7:double ask_size=8:int32 condition=9",
    "OptionTrade": "symbol=1 timestamp=2:Timestamp price=3:double size=4:int32 exchange=5 condition=6",
    "OrderUpdate": "event=1:OrderEvent event_id=2 timestamp=3:Timestamp order=4:OrderDetails execution_id=5? price=6? "
    "qty=7? position_qty=8?",
    "OrderDetails": "id=1 client_order_id=2 symbol=3 asset_class=4:AssetClass order_class=5:OrderClass "
    "order_type=6:OrderType side=7:OrderSide time_in_force=8:TimeInForce qty=9 filled_qty=10 filled_avg_price=11 "
    "limit_price=12? stop_price=13? status=14 extended_hours=15:bool created_at=16:Timestamp updated_at=17:Timestamp "
    "submitted_at=18:Timestamp filled_at=19?:Timestamp canceled_at=20?:Timestamp expired_at=21?:Timestamp "
    "failed_at=22?:Timestamp legs=23*:OrderUpdateLeg commission=24?",
    "OrderUpdateLeg": "id=1 symbol=2 side=3:OrderSide qty=4 filled_qty=5 filled_avg_price=6 ratio_qty=7 status=8",
    "FeedStatus": "feed_type=1:FeedType state=2:ConnectionState last_connected_at=3?:Timestamp error_message=4? "
    "subscription_count=5:int32 reconnect_attempts=6:int32 messages_received=7:int64",
    "ConnectionStatus": "version=1 started_at=2:Timestamp current_time=3:Timestamp feeds=4*:FeedStatus "
    "client_count=5:int32 environment=6:Environment",
}
ENUMS = {
    "OrderEvent": "NEW FILL PARTIAL_FILL CANCELED EXPIRED REJECTED PENDING_NEW STOPPED REPLACED SUSPENDED "
    "PENDING_CANCEL PENDING_REPLACE CALCULATED DONE_FOR_DAY TRADE_BUST",
    "AssetClass": "US_EQUITY US_OPTION CRYPTO",
    "OrderClass": "SIMPLE BRACKET OCO OTO MLEG",
    "OrderSide": "BUY SELL",
    "OrderType": "LIMIT MARKET STOP STOP_LIMIT TRAILING_STOP",
    "TimeInForce": "DAY GTC IOC FOK OPG CLS",
    "ConnectionState": "DISCONNECTED CONNECTING AUTHENTICATING CONNECTED RECONNECTING ERROR",
    "FeedType": "SIP IEX OPRA INDICATIVE TRADE_UPDATES",
}
TYPES = {
    FieldDescriptor.TYPE_DOUBLE: "double",
    FieldDescriptor.TYPE_INT32: "int32",
    FieldDescriptor.TYPE_INT64: "int64",
    FieldDescriptor.TYPE_UINT64: "uint64",
    FieldDescriptor.TYPE_BOOL: "bool",
}


def describe(field: FieldDescriptor) -> str:
    named = field.message_type or field.enum_type
    kind = named.name if named is not None else TYPES.get(field.type, "")
    is_optional = field.containing_oneof is not None
    mark = "*" if field.is_repeated else "?" if is_optional else ""
    return f"{field.name}={field.number}{mark}" + (f":{kind}" if kind else "")


def test_every_message_has_the_promised_fields() -> None:
    found = stream_proxy_pb2.DESCRIPTOR.message_types_by_name
    assert set(found) == set(MESSAGES)
    for name, fields in MESSAGES.items():
        assert " ".join(map(describe, found[name].fields)) == fields, name


def test_every_enum_has_the_promised_numbers_and_names() -> None:
    found = {name: enum for module in MODULES for name, enum in module.DESCRIPTOR.enum_types_by_name.items()}
    assert set(found) == {*ENUMS, "Environment"}
    for name, words in ENUMS.items():
        prefix = "".join(f"_{letter}" if letter.isupper() else letter.upper() for letter in name).lstrip("_")
        expected = {f"{prefix}_{word}": number for number, word in enumerate(["UNSPECIFIED", *words.split()])}
        assert {value.name: value.number for value in found[name].values} == expected
    environments = {value.name: value.number for value in found["Environment"].values}
    assert environments == {"ENVIRONMENT_UNSPECIFIED": 0, "ENVIRONMENT_PAPER": 2, "ENVIRONMENT_LIVE": 3}


def test_the_service_is_named_as_promised() -> None:
    service = stream_proxy_pb2.DESCRIPTOR.services_by_name["StreamProxyService"]
    assert service.full_name == "cream.v1.StreamProxyService"
    for method in service.methods:
        assert (method.input_type.name, method.output_type.name) == (f"{method.name}Request", f"{method.name}Response")
        assert method.server_streaming == (method.name != "GetConnectionStatus")
    assert {path.name for path in (ROOT / "cream" / "v1").glob("*.proto")} == {Path(name).name for name in PROTOS}


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.DESCRIPTOR.name)
def test_the_modules_are_made_of_the_files(module: ModuleType, tmp_path: Path) -> None:
    # In a process of its own: a pool takes a file once.
    write_modules(tmp_path)
    name = Path(str(module.__file__)).relative_to(ROOT)
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import {'.'.join(name.with_suffix('').parts)} as made"
    for path in tmp_path.rglob("*.py"):
        path.write_text(path.read_text(encoding="utf-8").replace("dry_work.proto.cream", "cream"), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-c", f"{code}; sys.stdout.buffer.write(made.DESCRIPTOR.serialized_pb)"],
        capture_output=True,
        timeout=60,
        check=True,
    )
    assert done.stdout == module.DESCRIPTOR.serialized_pb, "run dry_work/proto/cream/write_modules.py"


def test_stubs_of_others_of_the_same_package_can_be_loaded_beside_ours(tmp_path: Path) -> None:
    proto = tmp_path / "cream" / "v1" / "stream_proxy.proto"
    proto.parent.mkdir(parents=True)
    proto.write_text('syntax = "proto3"; package cream.v1; message StockQuote { string symbol = 1; }', encoding="utf-8")
    code = f"""
import sys
from grpc_tools import protoc
assert protoc.main(["protoc", "-I{tmp_path}", "--python_out={tmp_path}", "cream/v1/stream_proxy.proto"]) == 0
from dry_work.proto.cream.v1 import stream_proxy_pb2 as ours
sys.path.insert(0, {str(tmp_path)!r})
from cream.v1 import stream_proxy_pb2 as theirs
assert theirs.StockQuote is not ours.StockQuote
print(theirs.StockQuote.FromString(ours.StockQuote(symbol="AAPL").SerializeToString()).symbol)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "AAPL\n"
