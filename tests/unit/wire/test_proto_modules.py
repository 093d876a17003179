"""The generated modules are those of the .proto files."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorProto

import dry_work.proto
from dry_work.proto.stream.v0 import stream_pb2
from dry_work.proto.tradesvc.v0 import tradesvc_pb2
from dry_work.proto.write_modules import write_modules

FOLDER = Path(dry_work.proto.__file__).parent


@pytest.mark.parametrize(
    ("name", "module"), [("tradesvc/v0/tradesvc", tradesvc_pb2), ("stream/v0/stream", stream_pb2)], ids=str
)
def test_a_module_generated_anew_describes_the_same(name: str, module: object, tmp_path: Path) -> None:
    pytest.importorskip("grpc_tools")
    written = {path.name: path for path in write_modules(FOLDER / f"{name}.proto", tmp_path)}
    path = written[f"{Path(name).name}_pb2.py"]
    spec = importlib.util.spec_from_file_location(f"anew_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    anew = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(anew)
    assert anew.DESCRIPTOR.serialized_pb == module.DESCRIPTOR.serialized_pb  # type: ignore[attr-defined]
    stub = f"{Path(name).name}_pb2.pyi"
    assert written[stub].read_text() == (FOLDER / f"{name}_pb2.pyi").read_text()


def test_every_documented_field_number_is_there() -> None:
    numbers = {
        "Trade": "symbol=1 qty=2 notional=3 side=4 order_type=5 tif=6 limit_price=7 extended_hours=8 stop_price=9 "
        "class=11 take_profit=12 stop_loss=13 trail_price=14 trail_percent=15 position_intent=16",
        "TakeProfit": "limit_price=1",
        "StopLoss": "limit=1 stop=2",
        "TradeUpdate": "at=1 event=2 event_id=3 execution_id=4 order=5 position_qty=6 price=7 qty=8 timestamp=9",
        "Order": "id=1 client_order_id=2 created_at=3 updated_at=4 submitted_at=5 filled_at=6 expired_at=7 "
        "canceled_at=8 failed_at=9 replaced_at=10 replaced_by=11 replaces=12 asset_id=13 symbol=14 asset_class=15 "
        "order_class=16 type=17 side=18 time_in_force=19 status=20 notional=21 qty=22 filled_qty=23 "
        "filled_avg_price=24 limit_price=25 stop_price=26 trail_price=27 trail_percent=28 hwm=29 ext_hours=30 legs=31",
        "Position": "asset_id=1 symbol=2 exchange=3 asset_class=4 asset_marginable=5 qty=6 qty_available=7 "
        "avg_entry_price=8 side=9 market_value=10 cost_basis=11 unrealized_pl=12 unrealized_plpc=13 "
        "unrealized_intraday_pl=14 unrealized_intraday_plpc=15 current_price=16 lastday_price=17 change_today=18",
        "Positions": "positions=1",
    }
    stream = {
        "Bar": "symbol=1 open=2 high=3 low=4 close=5 volume=6 timestamp=7 trade_count=8 vwap=9",
        "News": "id=1 symbols=2 headline=3 author=4 summary=5 content=6 url=7 created_at=8 updated_at=9",
    }
    for module, messages in ((tradesvc_pb2, numbers), (stream_pb2, stream)):
        file = FileDescriptorProto.FromString(module.DESCRIPTOR.serialized_pb)
        found = {
            message.name: " ".join(f"{field.name}={field.number}" for field in message.field)
            for message in file.message_type
        }
        assert found.items() >= messages.items()


@pytest.mark.parametrize(
    ("package", "module", "message"),
    [("tradesvc.v0", tradesvc_pb2, "Trade"), ("stream.v0", stream_pb2, "Bar")],
    ids=["tradesvc", "stream"],
)
def test_stubs_of_others_of_the_same_package_can_be_loaded_beside_ours(
    package: str, module: ModuleType, message: str, tmp_path: Path
) -> None:
    pytest.importorskip("grpc_tools")
    # Once under the very name of our file, with other fields, and once under the name that a client's copy has.
    ours = str(module.DESCRIPTOR.name)
    names = {"same": ours, "own": f"{package.replace('.', '/')}/{Path(ours).name}"}
    for folder, name in names.items():
        proto = tmp_path / folder / name
        proto.parent.mkdir(parents=True)
        text = f'syntax = "proto3"; package {package}; message {message} {{ string symbol = 1; string more = 99; }}'
        proto.write_text(text, encoding="utf-8")
    code = f"""
import importlib.util, sys
from grpc_tools import protoc
folder, name = sys.argv[1:]
assert protoc.main(["protoc", f"-I{{folder}}", f"--python_out={{folder}}", name]) == 0
from {module.__name__} import {message} as Ours
spec = importlib.util.spec_from_file_location("theirs_pb2", f"{{folder}}/{{name.removesuffix('.proto')}}_pb2.py")
theirs = importlib.util.module_from_spec(spec)
spec.loader.exec_module(theirs)
assert theirs.{message} is not Ours
print(theirs.{message}.FromString(Ours(symbol="AAPL").SerializeToString()).symbol)
"""
    for folder, name in names.items():
        done = subprocess.run(
            [sys.executable, "-c", code, str(tmp_path / folder), name],
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
        assert done.stdout == "AAPL\n"
