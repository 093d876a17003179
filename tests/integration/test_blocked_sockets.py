"""What a strategy asks of its broker is answered from memory, also when no socket of the process gives an answer."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

# A trader at an exchange that stands still, in a process of its own, since all its sockets are about to block.
TRADER = """
import datetime, json, os, signal, socket, sys, threading, time

import backtrader as bt

from dry_work.broker.paper import AlpacaPaperTradingBroker
from dry_work.broker.journal import Journal
from dry_work.orders.risk_limits import RiskLimits

class Bars(bt.DataBase):
    params = (("symbol", None), ("timeframe", bt.TimeFrame.Minutes))

    def start(self):
        super().start()
        self.count = 0

    def _load(self):
        self.count += 1
        if self.count > 3:
            return False
        self.lines.datetime[0] = bt.date2num(datetime.datetime(2024, 6, 11, 13, 30 + self.count))
        for line in (self.lines.open, self.lines.high, self.lines.low, self.lines.close):
            line[0] = 100.0
        self.lines.volume[0] = self.lines.openinterest[0] = 0.0
        return True

URL, EXCHANGE, FOLDER = sys.argv[1], int(sys.argv[2]), sys.argv[3]
CALLS = ("connect", "connect_ex", "send", "sendall", "sendto", "sendmsg", "recv", "recv_into", "recvfrom", "recvmsg",
         "accept", "makefile", "shutdown")
touched = []  # threads that have called a socket since they block
blocked = threading.Event()

class BlockingSocket(socket.socket):
    '''A socket each of whose operations waits for ever once `blocked` is set.'''

def touch(name):
    if blocked.is_set():
        touched.append((threading.get_ident(), name))
        threading.Event().wait()

for name in CALLS:
    def call(self, *args, _name=name, _original=getattr(socket.socket, name), **kwargs):
        touch(_name)
        return _original(self, *args, **kwargs)
    setattr(BlockingSocket, name, call)

socket.socket = BlockingSocket
real_getaddrinfo = socket.getaddrinfo
def getaddrinfo(*args, **kwargs):
    touch("getaddrinfo")
    return real_getaddrinfo(*args, **kwargs)
socket.getaddrinfo = getaddrinfo

class Asking(bt.Strategy):
    def next(self):
        if len(self) != 2:
            return
        broker = self.broker
        os.kill(EXCHANGE, signal.SIGSTOP)
        blocked.set()
        # Everything that the broker's threads do from now on hangs: orders, snapshots, the brake's cancellations.
        self.buy(data=self.data, size=1)
        broker.refresh_account()
        deadline = time.monotonic() + 30
        while not touched and time.monotonic() < deadline:
            time.sleep(0.01)
        others = len({thread for thread, _ in touched})
        began = time.monotonic()
        answers = set()
        for _ in range(1000):
            answers.add((broker.getcash(), broker.getvalue(), broker.getvalue([self.data]), broker.get_cash(),
                         broker.getposition(self.data).size, self.position.size, broker.get_value(),
                         len(broker.get_orders_open()), broker.halted))
            broker.next()
            while broker.get_notification() is not None:
                pass
        me = threading.get_ident()
        print(json.dumps({
            "seconds": time.monotonic() - began,
            "answers": sorted(answers),
            "others": others,
            "mine": [name for thread, name in touched if thread == me],
        }), flush=True)
        os.kill(EXCHANGE, signal.SIGCONT)
        os._exit(0)

broker = AlpacaPaperTradingBroker(
    api_key="KEY", secret_key="SECRET", url_override=URL, journal=Journal(f"{FOLDER}/orders.sqlite"), agent="tester",
    session="s", refresh_s=0.5, risk=RiskLimits(stale_bars=0),
)
cerebro = bt.Cerebro(stdstats=False, preload=False, runonce=False)
cerebro.adddata(Bars(symbol="BTC/USD"), name="BTC/USD")
cerebro.setbroker(broker)
cerebro.addstrategy(Asking)
cerebro.run()
"""

EXCHANGE = """
import sys, threading
from dry_work.exchange.server import ExchangeServer
from dry_work.exchange.synthetic import synthetic_day

exchange = ExchangeServer(synthetic_day(("SPY", "BTC/USD")), speed=1.0)
exchange.start()
print(exchange.url, flush=True)
sys.stdin.read()
exchange.stop()
"""


@pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="needs a signal that stops a process")
def test_the_account_is_told_at_once_when_every_socket_blocks_and_the_exchange_stands_still(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("ALPACA")}
    exchange = subprocess.Popen(
        [sys.executable, "-c", EXCHANGE], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    )
    try:
        assert exchange.stdout is not None
        url = exchange.stdout.readline().strip()
        trader = subprocess.run(
            [sys.executable, "-c", TRADER, url, str(exchange.pid), str(tmp_path)],
            capture_output=True, text=True, timeout=90, env=environment, check=False,
        )  # fmt: skip
        assert trader.returncode == 0, trader.stderr
        found = json.loads(trader.stdout.splitlines()[-1])
    finally:
        os.kill(exchange.pid, signal.SIGCONT)
        exchange.kill()
        exchange.wait(30)
        for pipe in (exchange.stdin, exchange.stdout):
            assert pipe is not None
            pipe.close()
    assert found["others"] >= 1  # the sockets do block: threads of the broker stand still in them
    assert found["mine"] == []  # and the strategy's thread has touched none
    [answer] = found["answers"]
    assert answer == [100_000.0, 100_000.0, 0.0, 100_000.0, 0, 0, 100_000.0, 1, ""]
    assert found["seconds"] < 30
