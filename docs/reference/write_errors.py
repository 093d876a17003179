"""Write `errors.md` beside this file from the exceptions and tables of codes: `python docs/reference/write_errors.py`.

What to do about an error stands in `HELP`; one without such a line is an error of this program.
"""

from __future__ import annotations

import re
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

from source_notes import build_table, code, read_summary

import deploy.http
import dry_work.errors
from deploy.errors import DeployError
from dry_work.errors import BrokerError, ConfigError, DryWorkError, VenueAuthError
from dry_work.orders.risk import CODE_PREFIX, LimitName
from dry_work.orders.rules import RefusalCode
from dry_work.wire import alpaca_fields
from dry_work.wire.alpaca_stream import ERROR_MESSAGES

PAGE = Path(__file__).with_name("errors.md")

HEAD = """\
# Errors

Written by `python docs/reference/write_errors.py` from the exceptions and the tables of codes; a test compares the two.

## Exit codes

| code | of `dry-work` |
| --- | --- |
| 0 | done; also after SIGTERM |
| 1 | the run failed, or the answer is no (`status`, `replay`, `check`) |
| 2 | usage, a setting, an input file, credentials: nothing was begun, and the sentence on stderr names what to change |
| 3 | stopped by a limit of losses ([limits](../howto/risk.md)) |
| 124 | the hub: ending in order took longer than `SHUTDOWN_TIMEOUT` |
| 130 | Ctrl-C |

## Exceptions

All are in `dry_work.errors`. The exit code is that of a command which it ends; where there is none, it is handled and
the run goes on.
"""

EXIT = {
    "CodecError": "",
    "FeedDisconnectedError": "",
    "OrderRejectedError": "",
    "InsufficientFundsError": "",
    "RiskRefusedError": "",
    "RateLimitedError": "",
    "OutcomeUnknownError": "",
}

HELP = {
    "DryWorkError": "the base: `except DryWorkError` catches all that Dry Work raises on purpose",
    "ConfigError": "change what the sentence names; `dry-work check` looks at everything at once",
    "DataFileError": "the sentence names file and row; `dry-work data` looks at whole folders",
    "StorageError": "the sentence names the place; when `retryable` the same call may work later",
    "LeaseHeldError": "stop the other process, or give this one another `AGENT_ID`; `dry-work status` shows them",
    "CodecError": "nothing: it is counted in `feed_events`; if the count grows, look at who publishes",
    "FeedError": "look at the reason; a supervisor may start the run again",
    "FeedDisconnectedError": "nothing: it is connected again by itself",
    "BrokerError": "look at `code`, `http_status` and `request_id`",
    "OrderRejectedError": "look at `order.info.reject_reason`; [orders](orders.md) has what is taken",
    "InsufficientFundsError": "a smaller order, or more money: the order is Margin",
    "RiskRefusedError": "see the codes below; `dry-work halt --release` when the agent is halted",
    "RateLimitedError": "nothing: it waits; fewer programs on one key when it comes often",
    "OutcomeUnknownError": "nothing: the order is looked up before another is sent; UNKNOWN in `dry-work status`",
    "VenueAuthError": "check the key pair, and whether it is of paper or live: `dry-work check`",
    "BrokerUnavailableError": "nothing: it is tried again; at the start of a run the venue has to be there",
    "HubError": "look at the reason; the hub's log has the interface",
    "LookBackError": "give `--lookback`, or let the strategy say what it reads ([memory](../design/memory.md))",
    "StrategyError": "the strategy's own traceback is printed above",
}

REFUSALS = {
    "kind_not_supported": "Alpaca has no such order for this asset",
    "time_in_force_not_supported": "not with this kind of order and asset",
    "linked_orders_not_supported": "exits that cannot be sent as one order",
    "option_not_supported": "a keyword of `buy` or `sell` that has no effect, or cannot be had together",
    "session_closed": "not at this time of day",
    "symbol_not_usable": "the data's name is no symbol that can be traded",
    "size_not_usable": "zero, not whole, too small",
    "price_not_usable": "missing, or on the wrong side",
    "no_bar_yet": "the symbol has had no bar: there is no price to judge by",
    "not_trading": "broker stopped, halted, or not started",
    "unexplained": "the symbol is halted: what the venue says of it is not explained by our books",
}

STREAM_HELP = {
    400: "a message that cannot be read",
    401: "subscribe comes after auth",
    402: "key and secret, or the token; the session ends",
    403: "auth is sent once",
    404: "auth has to come within ten seconds; the session ends",
    405: "the plan, or `--stream-symbols` of the exchange, allows fewer symbols",
    406: "Alpaca allows one session for each endpoint: let the hub hold it",
    407: "the client reads too slowly",
    408: "the account has not the second version of the streams",
    409: "the plan does not have this feed",
    410: "a channel that the feed does not have",
    411: "a token without the rights",
    412: "options come as MessagePack alone: `Content-Type: application/msgpack`",
    500: "Alpaca's own; try again",
}


def build_page() -> str:
    """Return the page."""
    rest = build_table(["code", "HTTP", "when"], [[code(number), http, text] for number, http, text in _read_codes()])
    stream = build_table(
        ["code", "message", "means"],
        [[code(str(n)), text, STREAM_HELP[n]] for n, text in sorted(ERROR_MESSAGES.items())],
    )
    refusals = build_table(
        ["`order.info.reject_code`", "means"], [[code(each.value), REFUSALS[each.value]] for each in RefusalCode]
    )
    limits = ", ".join(code(f"{CODE_PREFIX}{each.value}") for each in LimitName)
    deploy = build_table(["exception", "status", "HTTP", "means"], list(_list_deploy()))
    fields = ", ".join(code(name) for name in ("message", "code", "http_status", "request_id"))
    parts = [
        HEAD,
        f"```text\n{_draw_tree()}\n```\n",
        build_table(["exception", "exit", "when, and who handles it", "what to do"], list(_list_exceptions())) + "\n",
        f"Every `{BrokerError.__name__}` has {fields}; `retryable` says whether it is tried again.\n",
        f"## Orders that do not leave\n\n{refusals}\n",
        textwrap.fill(f"Refused by a limit, or by the brake ([limits](../howto/risk.md)): {limits}.", 120) + "\n",
        "What the venue refuses has the venue's own number as its code.\n",
        '## The trading API\n\nOf Alpaca and of the simulated exchange: `{"code", "message"}`.\n',
        rest + "\n",
        "## Market-data and order streams\n",
        'Of Alpaca, the simulated exchange and the hub\'s WebSocket: `[{"T":"error","code":…,"msg":"…"}]`.\n',
        stream + "\n",
        "## The deploy service\n\nAnswered as JSON with a sentence; those that are its own business are 500.\n",
        deploy + "\n",
    ]
    return "\n".join(parts)


def _walk(kind: type[Exception], depth: int = 0) -> Iterator[tuple[type[Exception], int]]:
    yield kind, depth
    own = [each for each in vars(dry_work.errors).values() if isinstance(each, type) and each.__bases__[0] is kind]
    for each in own:
        yield from _walk(each, depth + 1)


def _draw_tree() -> str:
    return "\n".join(f"{'  ' * depth}{kind.__name__}" for kind, depth in _walk(DryWorkError))


def _list_exceptions() -> Iterator[list[str]]:
    for kind, _ in _walk(DryWorkError):
        name = kind.__name__
        if name not in HELP:
            raise SystemExit(f"{name} has no line in HELP of {Path(__file__).name}")
        # As `dry_work.cli.main` does.
        exit_code = EXIT.get(name, "2" if issubclass(kind, ConfigError | VenueAuthError) else "1")
        yield [code(name), exit_code, read_summary(kind), HELP[name]]


def _read_codes() -> Iterator[tuple[str, str, str]]:
    """Yield number, HTTP status and meaning of Alpaca's codes as the module that names them says it."""
    source = Path(alpaca_fields.__file__).read_text(encoding="utf-8")
    for number, status, text in re.findall(r"(?m)^CODE_\w+ = (\d+)  # HTTP (\d+)(?:: (.*))?$", source):
        yield number, status, text or REST_TEXTS[int(status)]


REST_TEXTS = {401: "no credentials, or refused ones", 404: "not there", 429: "too many requests", 500: "its own fault"}


def _list_deploy() -> Iterator[list[str]]:
    pending: list[type[DeployError]] = [DeployError]
    while pending:
        kind = pending.pop(0)
        pending += kind.__subclasses__()
        yield [
            code(kind.__name__),
            code(kind.kind),
            str(deploy.http._CALLABLE.get(kind.kind, (500,))[0]),
            read_summary(kind),
        ]


if __name__ == "__main__":
    PAGE.write_text(build_page(), encoding="utf-8")
    sys.stdout.write(f"wrote {PAGE}\n")
