"""One run of the trader, killed and started again until its script is done, and what is left of it everywhere."""

from __future__ import annotations

import json
import time
import urllib.request
from collections import Counter
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any

from dry_work.broker.books_reader import read_books
from dry_work.broker.own_books import build_orders, sum_positions
from tests.faults.programs import Program

TRADER = Path(__file__).with_name("trader.py")
LIFE_S = 120.0  # the longest that one process of the trader may take
MOST_LIVES = 12
MARKETS = {
    # What a trader of the product meets in lock-step, and at Alpaca: the market and its events do not wait.
    "lockstep": ("--speed", "max"),
    "flowing": ("--speed", "300", "--skip-gaps"),
}
_KEY, _SECRET, _AGENT = "PKKILL", "not-a-secret", "killed"


@dataclass(frozen=True)
class Kill:
    """What ends one life of the trader: a boundary by name, or a time after its start."""

    boundary: str = ""
    after_s: float | None = None

    def __str__(self) -> str:
        return self.boundary if self.after_s is None else f"after {self.after_s:.3f} s"


@dataclass
class Ending:
    """What a run left behind."""

    kills: list[str] = field(default_factory=list)  # that struck
    boundaries: list[str] = field(default_factory=list)  # of the first life, in order
    seconds: float = 0.0  # of the first life
    failure: str = ""  # why the script was not done
    venue_orders: list[str] = field(default_factory=list)
    venue_ids: list[str] = field(default_factory=list)
    venue_cash: str = ""
    venue_position: str = ""
    agent_cash: str = ""
    agent_position: str = ""
    journal_position: str = ""
    journal_fills: dict[str, str] = field(default_factory=dict)  # bought and sold, quantity and value
    venue_fills: dict[str, str] = field(default_factory=dict)
    journal_open: list[str] = field(default_factory=list)
    journal_ids: list[str] = field(default_factory=list)
    told: list[list[Any]] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)


def write_market(folder: Path) -> Path:
    """Write the recording: three days on which every minute is like the other.

    A run that is late by some minutes gets the same fills. Ten shares are traded in each, so that orders fill in parts.
    """
    rows = ["symbol,timestamp,open,high,low,close,volume"]
    for day in (10, 11, 12):
        for minute in range(390):
            hour, rest = divmod(13 * 60 + 30 + minute, 60)
            rows.append(f"SPY,2024-06-{day:02}T{hour:02}:{rest:02}:00Z,100,101,99,100,10")
    path = folder / "market.csv"
    path.write_text("\n".join(rows) + "\n")
    return path


class Stage:
    """Exchange, Pub/Sub and hub for one trader.

    Args:
        folder: of this run.
        pubsub: address of a Pub/Sub server, which many share.
        rules: of the exchange, as its options.
    """

    def __init__(
        self,
        folder: Path,
        *,
        recording: Path,
        pubsub: str,
        market: str,
        symbols: tuple[str, ...] = ("SPY",),
        rules: tuple[str, ...] = ("--rules", "alpaca", "--matching", "volume"),
    ) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "symbols.txt").write_text("".join(f"{symbol}\n" for symbol in symbols))
        self.exchange = Program(
            "exchange", "--data", str(recording), *rules, "--port", "0", *MARKETS[market],
            *(("--consumers", "1") if market == "flowing" else ()), folder=folder, log="exchange.log",
        )  # fmt: skip
        self.hub: Program | None = None
        self.url = ""
        self._pubsub = pubsub

    def start(self) -> None:
        """Return when the trader can be started."""
        self.url = self.exchange.wait_for_line(r"ALPACA_URL=(http://\S+)")[1]
        self.env = {
            "ALPACA_API_KEY": _KEY,
            "ALPACA_SECRET_KEY": _SECRET,
            "ALPACA_URL": self.url,
            "ALPACA_DATA_URL": self.url,
            "ALPACA_STREAM_URL": self.url.replace("http", "ws", 1),
            "PUBSUB_EMULATOR_HOST": self._pubsub,
            "GOOGLE_CLOUD_PROJECT": f"p{self.folder.name}",
            "AGENT_ID": _AGENT,
            # Several hubs run at a time.
            "STREAM_PROXY_HEALTH_PORT": "0",
            "STREAM_PROXY_METRICS_PORT": "0",
            "HEALTH_PORT": "0",
        }
        self.hub = Program("hub", "--symbols", "symbols.txt", folder=self.folder, log="hub.log", env=self.env)
        self.hub.wait_for_line("connected")

    def ask(self, path: str) -> Any:
        """Return the exchange's answer."""
        headers = {"APCA-API-KEY-ID": _KEY, "APCA-API-SECRET-KEY": _SECRET}
        with urllib.request.urlopen(urllib.request.Request(self.url + path, headers=headers), timeout=60.0) as answer:
            return json.loads(answer.read())

    def close(self) -> None:
        """End all processes."""
        for program in (self.hub, self.exchange):
            if program is not None:
                program.close()


def run_trader(folder: Path, kills: list[Kill], *, recording: Path, pubsub: str, market: str) -> Ending:
    """Run the trader to the end of its script; its lives are ended by `kills`, one after the other."""
    ending = Ending()
    stage = Stage(folder, recording=recording, pubsub=pubsub, market=market)
    try:
        stage.start()
        _live(stage, kills, ending)
        _look(stage, ending)
    except Exception as error:
        ending.failure = ending.failure or f"{type(error).__name__}: {error}"
    finally:
        stage.close()
    return ending


def _live(stage: Stage, kills: list[Kill], ending: Ending) -> None:
    args = ["run", "--symbols", "symbols.txt", "--agent", f"{TRADER}:Trader", "--warmup", "0", "--plain"]
    for number in range(MOST_LIVES):
        kill = kills[number] if number < len(kills) else None
        begun_s = time.monotonic()
        trader = Program(
            *args, folder=stage.folder, log=f"trader-{number + 1}.log", env=stage.env,
            kill_at="" if kill is None else kill.boundary,
        )  # fmt: skip
        try:
            if kill is not None and kill.after_s is not None:
                trader.wait(kill.after_s)
                trader.kill()
            code = trader.wait(LIFE_S)
        finally:
            trader.close()
        if number == 0:
            ending.seconds = time.monotonic() - begun_s
            listed = Path(f"{trader.log}.boundaries")
            ending.boundaries = listed.read_text().split("\n")[:-1] if listed.exists() else []
        if code == 0:
            return
        # The fork server does not always get to tell which signal it was: then it says 255.
        if code in (-9, 255) and kill is not None:
            ending.kills.append(str(kill))
            continue
        ended = f"did not end within {LIFE_S:g} s" if code in (None, -9) else f"ended with exit code {code}"
        ending.failure = f"life {number + 1} {ended}:\n{trader.output[-2000:]}"
        return
    ending.failure = f"the script was not done after {MOST_LIVES} lives"


def _look(stage: Stage, ending: Ending) -> None:
    """Read the books of the venue, of the journal and of the agent."""
    orders = stage.ask("/v2/orders?status=all&limit=500")
    ending.venue_orders = sorted(_describe_order(order) for order in orders)
    ending.venue_ids = sorted(order["client_order_id"] for order in orders)
    account, positions = stage.ask("/v2/account"), stage.ask("/v2/positions")
    ending.venue_cash = _plain(account["cash"])
    ending.venue_position = _plain(positions[0]["qty"] if positions else "0")
    fills = stage.ask("/v2/account/activities/FILL?page_size=100")
    ending.venue_fills = _sum_fills((row["side"], row["qty"], row["price"]) for row in fills)
    [path] = stage.folder.glob(".dry-work/*/orders.sqlite")
    books = read_books(path)
    ending.journal_fills = _sum_fills((fill.side.value, str(fill.qty), str(fill.price)) for fill in books.fills)
    held = sum_positions(books).get("SPY")
    ending.journal_position = _plain("0" if held is None else str(held.qty))
    ending.journal_open = [f"{order.name} {order.state}" for order in build_orders(books) if order.is_open]
    ending.journal_ids = sorted(order.client_order_id for order in books.orders)
    end = stage.folder / "end.json"
    if not end.exists():
        return
    own = json.loads(end.read_text())
    ending.agent_cash, ending.agent_position = _plain(str(round(own["cash"], 6))), _plain(str(own["position"]))
    ending.told, ending.lost = own["told"], own["lost"]


def compare(ending: Ending, peace: Ending, *, exact: bool) -> list[str]:
    """Return what is wrong with a run, against the run in peace; nothing when all is well.

    Args:
        exact: every execution has to be told by itself. Without it, executions that the venue made while nobody
            listened may be told as one.
    """
    if ending.failure:
        return [f"not done: {ending.failure}"]
    wrong = []
    here, there = Counter(ending.venue_orders), Counter(peace.venue_orders)
    wrong += [f"venue: doubled or changed: {order}" for order in (here - there).elements()]
    wrong += [f"venue: lost: {order}" for order in (there - here).elements()]
    for what, found, expected in (
        ("venue's cash", ending.venue_cash, peace.venue_cash),
        ("venue's position", ending.venue_position, peace.venue_position),
        ("venue's fills", ending.venue_fills, peace.venue_fills),
        ("agent's cash", ending.agent_cash, ending.venue_cash),
        ("agent's position", ending.agent_position, ending.venue_position),
        ("journal's position", ending.journal_position, ending.venue_position),
        ("journal's fills", ending.journal_fills, ending.venue_fills),
        ("journal's open orders", ending.journal_open, peace.journal_open),
        ("lost by the strategy", ending.lost, []),
    ):
        if found != expected:
            wrong.append(f"{what}: {found} instead of {expected}")
    strange = [name for name in ending.venue_ids if name.startswith("dw-") and name not in ending.journal_ids]
    wrong += [f"venue: an order that the journal does not know: {name}" for name in strange]
    return wrong + compare_told(ending.told, peace.told, exact=exact)


def compare_told(told: list[list[Any]], expected: list[list[Any]], *, exact: bool) -> list[str]:
    """Return what the strategy was told twice, not at all, wrongly, or in the wrong order."""
    wrong = []
    rows, wanted = [tuple(row) for row in told], [tuple(row) for row in expected]
    for row, count in Counter(rows).items():
        if count > wanted.count(row):
            wrong.append(f"told {count} times instead of {wanted.count(row)}: {_describe_told(row)}")
    for row in dict.fromkeys(wanted):
        if row not in rows and (exact or row[1] != "Partial"):
            wrong.append(f"not told: {_describe_told(row)}")
    for name in dict.fromkeys(row[0] for row in wanted):
        mine = [row for row in dict.fromkeys(rows) if row[0] == name and row in wanted]
        if mine != [row for row in wanted if row[0] == name and row in mine]:
            wrong.append(f"told in another order: {'; '.join(map(_describe_told, mine))}")
    return wrong


def _describe_told(row: tuple[Any, ...]) -> str:
    name, status, size, price = row
    return f"{name} {status}" + (f" {size:g}" if size else "") + (f" @ {price:g}" if price else "")


def _describe_order(order: dict[str, Any]) -> str:
    prices = " ".join(f"{name} {_plain(order[name])}" for name in ("limit_price", "stop_price") if order.get(name))
    average = f" @ {_plain(order['filled_avg_price'])}" if order.get("filled_avg_price") else ""
    return (
        f"{order['side']} {_plain(order['qty'])} {order['type']} {prices} ({order['order_class'] or 'simple'}) "
        f"{order['status']} {_plain(order['filled_qty'])}{average}"
    )


def _sum_fills(rows: Any) -> dict[str, str]:
    sums: dict[str, list[Decimal]] = {}
    for side, qty, price in rows:
        entry = sums.setdefault(side, [Decimal(0), Decimal(0)])
        entry[0] += Decimal(qty)
        entry[1] += Decimal(qty) * Decimal(price)
    return {side: f"{_plain(str(qty))} for {_plain(str(value))}" for side, (qty, value) in sorted(sums.items())}


def _plain(text: str) -> str:
    return f"{Decimal(text).normalize():f}"
