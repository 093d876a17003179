"""Write `settings.md` beside this file from the options, the tables of settings and what the source reads.

`python docs/reference/write_settings.py`. A variable that is read has to be in `VARIABLES` here, on the page of the
hub's variables, or in the deploy service's tables; one that nobody reads any more is an error.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import click
import msgspec
from source_notes import build_table, code, read_fields

from deploy import settings as deploy
from dry_work import settings
from dry_work.cli import COMMANDS, cli
from dry_work.observability.settings import AGENT_SERVICE, WatchSettings
from dry_work.orders.risk_limits import SETTING_NAMES, RiskLimits

PAGE = Path(__file__).with_name("settings.md")
HUB_PAGE = PAGE.with_name("hub-settings.md")
ROOT = Path(__file__).parents[2]

HEAD = """\
# Settings

Written by `python docs/reference/write_settings.py` from the options, the tables of settings and what the source reads;
a test compares the two.

Of one setting an option wins over the environment, the environment over `.env` and `configs/.env` in the folder that a
command is started in, and those over `dry-work.toml`. A variable without a value counts as unset. Several names for one
thing may be set when they agree. A value that cannot be used ends the start with exit code 2 and a sentence that names
setting, value and what is allowed. [`.env.example`](../../.env.example) can be copied to `.env`.

Durations of the hub have a unit (`150ms`, `3s`, `1m30s`); switches take true or false.
"""

ENVIRONMENT = """\
## Environment variables

Of everything but the hub. *Read by* is where a value is checked and used, below `dry_work`. `--feed nats` and
`--feed redis` read those of NATS and Redis below.
"""

DEPLOY = """\
`[deploy]` has `requirements`, a list of packages that an agent needs beside
Dry Work's own ([deploy](../howto/deploy.md)).
"""


class Note(NamedTuple):
    """What is said of a variable."""

    type: str
    default: str
    text: str
    read_by: str = ""  # where a search does not find it


WATCH = WatchSettings()
VARIABLES: dict[str, Note] = {
    "AGENT_ID": Note("id", "a random one", "name of the agent: in its orders, subscriptions and state directory"),
    "ALPACA_ACCOUNT_ID": Note("UUID", "", "account of the Broker API"),
    "ALPACA_API_KEY": Note("text", "", "key of the account"),
    "ALPACA_SECRET_KEY": Note("secret", "", "its secret"),
    "ALPACA_API_SECRET": Note("secret", "", "the same as `ALPACA_SECRET_KEY`"),
    "GOOGLE_CLOUD_PROJECT": Note("text", "", "project of the topics"),
    "HUB_TOKEN": Note("secret", "", "what a reader gives to a hub on another machine"),
    "LOG_FMT": Note("choice", "console", "console, google, json or logfmt"),
    "LOG_LEVEL": Note("choice", "warn", "debug, info, warn or error"),
    "MARKET_DATA_TOPIC": Note("topic", settings.MARKET_TOPIC, "topic of stocks"),
    "METRICS_PORT": Note("number", str(WATCH.metrics_port), "port of the agent's metrics; 0 takes any free one"),
    "OTEL_EXPORTER_OTLP_ENDPOINT": Note("URL", "off", "of an agent's spans: root of the collector"),
    "OTEL_EXPORTER_OTLP_TIMEOUT": Note("milliseconds", "5000", "of an export"),
    "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": Note("URL", "off", "of an agent's spans: the whole URL, instead"),
    "OTEL_SDK_DISABLED": Note("switch", "false", "true switches an agent's spans off"),
    "OTEL_SERVICE_NAME": Note("text", AGENT_SERVICE, "name of an agent in its spans"),
    "OTEL_TRACES_EXPORTER": Note("choice", "otlp", "of an agent's spans: otlp, console, none"),
    "PAPER_ALPACA_API_KEY_ID": Note("text", "", "the same as `ALPACA_API_KEY`, of a paper account"),
    "PAPER_ALPACA_API_SECRET_KEY": Note("secret", "", "its secret"),
    "ALPACA_URL": Note("URL", settings.PAPER_URL, "REST and trade updates"),
    "ALPACA_DATA_URL": Note("URL", settings.DATA_URL, "history for the warm-up, downloads, news"),
    "ALPACA_STREAM_URL": Note("URL", "wss://stream.data.alpaca.markets", "market data of the hub"),
    "CRYPTO_DATA_TOPIC": Note("topic", settings.CRYPTO_TOPIC, "topic of crypto pairs"),
    "DISABLE_METRICS": Note("switch", "true", "false serves the agent's metrics"),
    "DRY_WORK_ALERTS": Note("URLs", "", "where alerts go: addresses of apprise with commas between"),
    "DRY_WORK_ALERT_LOST_SECONDS": Note(
        "seconds", f"{WATCH.lost_s:g}", "without a connection: an alert", "dry_work/observability/settings.py"
    ),
    "DRY_WORK_ALERT_STALE_SECONDS": Note(
        "seconds", f"{WATCH.stale_s:g}", "without a slice: an alert", "dry_work/observability/settings.py"
    ),
    "DRY_WORK_DASHBOARD_TOKEN": Note("secret", "made at the start", "what a browser on another machine has to give"),
    "DRY_WORK_DEPLOY_TOKEN": Note("secret", "what gcloud prints", "identity token for the deploy service"),
    "DRY_WORK_DEPLOY_URL": Note("URL", "this machine", "base of the deploy service's functions"),
    "DRY_WORK_FEED": Note("choice", settings.FEEDS[0], f"way of market data: {', '.join(settings.FEEDS)}"),
    "DRY_WORK_HEARTBEAT_SECONDS": Note(
        "seconds", f"{WATCH.heartbeat_s:g}", "between two heartbeats", "dry_work/observability/settings.py"
    ),
    "DRY_WORK_HEARTBEAT_URL": Note("URL", "", "is called while slices come"),
    "DRY_WORK_LATE": Note("choice", "next", "a bar that comes after its slice: next (with the next one) or drop"),
    "DRY_WORK_JOURNAL_DAYS": Note(
        "days or off",
        str(settings.DEFAULT_JOURNAL_DAYS),
        "that an order stays in the orders journal once it has ended",
    ),
    "DRY_WORK_METRICS_HOST": Note("host", WATCH.metrics_host, "address of the agent's metrics"),
    "DRY_WORK_METRICS_SYMBOLS": Note("number", str(WATCH.metrics_symbols), "symbols with series of their own"),
    "DRY_WORK_REVISED": Note("choice", "record", "a correction of a delivered bar: record or tell (the strategy)"),
    "DRY_WORK_STALE_ACTION": Note("choice", "tell", "when all symbols are stale: tell or stop"),
    "DRY_WORK_STALE_S": Note(
        "seconds", f"{settings.DEFAULT_STALE_S:g}", "without a bar: a symbol is stale; from 60 on, or off"
    ),
    "DRY_WORK_STATUSES": Note("choice", "on", "whether halts and price bands are asked for: on or off"),
    "PUBSUB_EMULATOR_HOST": Note("host:port", "Google", "an emulator, such as `dry-work pubsub`"),
    "PUBSUB_TOPIC_NAME": Note("topic", settings.MARKET_TOPIC, "the same as `MARKET_DATA_TOPIC`, for publishers"),
    "STORAGE_EMULATOR_HOST": Note("URL", "Google", "a server in place of Google Cloud Storage"),
    "STREAM_PROXY_ENDPOINT": Note("URL", settings.DEFAULT_GRPC_ENDPOINT, "where the hub serves gRPC"),
    "STREAM_PROXY_WS_URL": Note("URL", settings.DEFAULT_WEBSOCKET_URL, "where the hub serves WebSocket"),
    "XDG_CACHE_HOME": Note("path", "~/.cache", "copies of a bucket's files, in dry-work/gs below it"),
}
# Looked at by `check` and others in the same sense as by the hub: a row of its page is enough.
ONLY_HUB = {"ALPACA_FEED", "ALPACA_OPTION_FEED"}
# What reads a variable, and of what type it is then.
_READERS = {
    "flag": "switch", "switch": "switch", "count": "number", "port": "number", "number": "number",
    "duration": "duration", "path": "path", "choice": "choice",
}  # fmt: skip
_SECRET = re.compile("SECRET|PASSWORD|TOKEN|OAUTH")
BEHIND = "*"  # a prefix that is handed over
_VARIABLE = re.compile(r"\*?[A-Z0-9]*(_[A-Z0-9]+)+|PREFIX")

# Keys of `dry-work.toml` that are not what an option of the same name says.
KEYS = {
    "run.agent_id": ("text", "", "as `AGENT_ID`"),
    "run.late": ("choice", "next", "as `DRY_WORK_LATE`"),
    "run.journal_days": ("days or off", str(settings.DEFAULT_JOURNAL_DAYS), "as `DRY_WORK_JOURNAL_DAYS`"),
    "run.params": ("table", "", "parameters of the strategy, by name: `[run.params]`"),
    "run.revised": ("choice", "record", "as `DRY_WORK_REVISED`"),
    "run.stale_action": ("choice", "tell", "as `DRY_WORK_STALE_ACTION`"),
    "run.stale_s": ("seconds or off", f"{settings.DEFAULT_STALE_S:g}", "as `DRY_WORK_STALE_S`"),
    "run.statuses": ("choice", "on", "as `DRY_WORK_STATUSES`"),
    "backtest.params": ("table", "", "parameters of the strategy, by name: `[backtest.params]`"),
    "alerts.urls": ("list of texts", "", "as `DRY_WORK_ALERTS`"),
    "alerts.heartbeat_url": ("URL", "", "as `DRY_WORK_HEARTBEAT_URL`"),
    "alerts.heartbeat_seconds": ("seconds", f"{WATCH.heartbeat_s:g}", "as `DRY_WORK_HEARTBEAT_SECONDS`"),
    "alerts.stale_seconds": ("seconds", f"{WATCH.stale_s:g}", "as `DRY_WORK_ALERT_STALE_SECONDS`"),
    "alerts.lost_seconds": ("seconds", f"{WATCH.lost_s:g}", "as `DRY_WORK_ALERT_LOST_SECONDS`"),
    "risk.off": ("switch", "false", "no limits at all, with `--local` only"),
}
TABLES = {
    "run": "Of `dry-work run`; also of `check`, and of `backtest` and `optimize` where their own table is silent.",
    "backtest": "Of `dry-work backtest` and `optimize`.",
    "risk": "Of `dry-work run`: [limits and the brake](../howto/risk.md).",
    "alerts": "Of `dry-work run`: [alerts](../howto/observe.md#alerts).",
}
LIMITS = {
    "order_value": ("amount or %", "value of one order"),
    "position_value": ("amount or %", "value of one symbol's position, with its open orders"),
    "gross_exposure": ("amount or %", "value of all positions, with all open orders"),
    "orders_per_minute": ("number", "orders within a minute of the market's time"),
    "repeated_orders": ("number", "equal orders within `repeated_seconds`"),
    "repeated_seconds": ("number", "see `repeated_orders`"),
    "price_collar": ("%", "how much worse for you than the last price a price may be"),
    "stale_bars": ("number", "how many bar lengths old the last bar may be while its market is open"),
    "day_loss": ("amount or %", "loss of a day of New York's; with `--local` off unless it is set"),
    "drawdown": ("amount or %", "below the highest equity; with `--local` off unless it is set"),
    "loss_action": ("choice", "what a loss limit does"),
    "on_breach": ("choice", "a run that a limit has halted: stop ends it with exit code 3, hold lets it go on"),
    "open_orders": ("choice", "which open orders a halt cancels"),
}


def build_page() -> str:
    """Return the page."""
    parts = [
        HEAD,
        ENVIRONMENT,
        build_table(["variable", "type", "default", "meaning", "read by"], _list_variables()) + "\n",
        "### Of the hub\n\nBy subject, with more words: [Settings of the hub](hub-settings.md).\n",
        build_table(["variable", "type", "default", "meaning", "read by"], _list_hub_variables()) + "\n",
        "### Of the deploy service\n\nOf its functions in Google Cloud: [Kubernetes](../howto/kubernetes.md).\n",
        build_table(["variable", "type", "default", "expected"], _list_deploy_variables()) + "\n",
        "## dry-work.toml\n",
        *(
            f"### [{name}]\n\n{TABLES[name]}\n\n"
            f"{build_table(['key', 'type', 'default', 'meaning'], _list_keys(name))}\n"
            for name in settings.TOML_KEYS
        ),
        DEPLOY,
        "## Options\n\nBy name, with the commands that have them. By command: [the command line](cli.md).\n",
        build_table(["option", "type", "default", "of", "meaning"], _list_options()) + "\n",
    ]
    return "\n".join(parts)


# Environment variables


class Reading(NamedTuple):
    """A place that names a variable."""

    module: str
    type: str  # empty when the call does not tell
    is_call: bool  # it reads it, rather than naming it


@cache
def find_readings() -> dict[str, list[Reading]]:
    """Return where the package names variables, as whole texts or behind a prefix."""
    found: dict[str, list[Reading]] = {}
    for path in sorted((ROOT / "dry_work").rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        module = path.relative_to(ROOT).as_posix()
        tree = ast.parse(text)
        constant = re.search(r'(?m)^_PREFIX = "([A-Z_]+_)"$', text)
        called: set[str] = set()
        for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
            name = ast.unparse(call.func)
            kind = next((_READERS[word] for word in _READERS if name.endswith(word)), "")
            is_read = bool(re.search(r"(read_variable|\.variable|\.text|environ(ment)?\.get|getenv)$", name)) or bool(
                kind
            )
            for argument in (*call.args, *(each.value for each in call.keywords if each.arg == "envvar")):
                named = _name_variable(argument, constant[1] if constant and name in ("count", "number") else "")
                if _VARIABLE.fullmatch(named):
                    called.add(named)
                    found.setdefault(named, []).append(Reading(module, kind, is_read))
        for node in ast.walk(tree):
            named = node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""
            if named not in called and _VARIABLE.fullmatch(named):
                found.setdefault(named, []).append(Reading(module, "", False))
    return found


def _name_variable(argument: ast.expr, prefix: str) -> str:
    """Return the variable that an argument names; of one with a prefix that is handed over what is behind it."""
    if isinstance(argument, ast.Constant) and isinstance(argument.value, str):
        return prefix + argument.value
    if isinstance(argument, ast.JoinedStr) and len(argument.values) == 2:
        end = argument.values[1]
        if isinstance(end, ast.Constant) and str(end.value).startswith("_"):
            return BEHIND + str(end.value)
    return ""


def _readings_of(name: str) -> list[Reading]:
    parts = [name[: match.start()] for match in re.finditer("_", name)]
    handed_over = [part for part in parts if part in find_readings() and BEHIND + name[len(part) :] in find_readings()]
    behind = [each for part in handed_over for each in find_readings()[BEHIND + name[len(part) :]]]
    return [*find_readings().get(name, []), *behind]


def _places(name: str) -> list[str]:
    """Return the modules that read a variable; where no call does, those that name it."""
    readings = _readings_of(name)
    return list(dict.fromkeys(each.module for each in readings if each.is_call)) or list(
        dict.fromkeys(each.module for each in readings)
    )


def _show_places(modules: Iterable[str]) -> str:
    return " ".join(code(module.removeprefix("dry_work/")) for module in modules)


def _list_variables() -> Iterator[list[str]]:
    hub = {name for names, _, _ in _read_hub_page() for name in names}
    read = {name for name, each in find_readings().items() if any(reading.is_call for reading in each)}
    read = {name for name in read if not name.startswith(BEHIND)}
    beside_hub = {name for name in hub if any(not _is_of_hub(place) for place in _places(name))} - ONLY_HUB
    if missing := sorted((read - set(VARIABLES) - hub - set(deploy.variables())) | (beside_hub - set(VARIABLES))):
        raise SystemExit(f"read, and in no table of settings: {', '.join(missing)}")
    for name in sorted(VARIABLES):
        note = VARIABLES[name]
        places = [note.read_by] if note.read_by else _places(name)
        if not places:
            raise SystemExit(f"{name} stands in VARIABLES, and nobody reads it")
        yield [code(name), note.type, note.default, note.text, _show_places(places)]


def _read_hub_page() -> Iterator[tuple[list[str], str, str]]:
    """Yield the rows of the page of the hub's variables: names, default, meaning."""
    for line in HUB_PAGE.read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        names = re.findall(r"`([A-Z][A-Z0-9_]+)`", cells[0])
        if line.startswith("| `") and names:
            yield names, cells[1], cells[2] if len(cells) > 2 else ""


def _list_hub_variables() -> Iterator[list[str]]:
    text = ""
    for names, default, meaning in _read_hub_page():
        readings = [reading for name in names for reading in _readings_of(name)]
        kind = next((reading.type for reading in readings if reading.type), "text")
        kind = "secret" if kind == "text" and any(map(_SECRET.search, names)) else kind
        places = dict.fromkeys(place for name in names for place in _places(name) if _is_of_hub(place))
        text = text if meaning == "the same" else meaning
        yield [" ".join(map(code, names)), kind, default, text or meaning, _show_places(places)]


def _is_of_hub(module: str) -> bool:
    return module.startswith("dry_work/hub/") or module in ("dry_work/settings.py", "dry_work/cli/hub.py")


def _list_deploy_variables() -> Iterator[list[str]]:
    defaults = {name: field.default for name, field in deploy.DeploySettings.__dataclass_fields__.items()}

    def show(field: str) -> str:
        value = defaults[field]
        return "" if not isinstance(value, str | int | float | tuple) else _show_value(value)

    for field, (names, _, expected) in deploy._TEXTS.items():
        yield [" ".join(map(code, names)), "text", show(field), expected]
    for field, (name, low, high) in deploy._DURATIONS.items():
        yield [code(name), "duration", f"{show(field)} s", f"{low} s to {high} s"]
    for field, (name, low, high) in deploy._NUMBERS.items():
        yield [code(name), "number", show(field), f"{low} to {high}"]
    for field, (name, _, expected) in deploy._LISTS.items():
        yield [code(name), "list", show(field), expected]
    for name in deploy._OTHERS:
        yield [code(name), "text", "", "`module:function` that puts the service together, for tests"]


def _show_value(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)


# dry-work.toml


def _list_keys(table: str) -> Iterator[list[str]]:
    command = None if table in ("risk", "alerts") else _get_command(table)
    options = {} if command is None else {each.name: each for each in command.params if isinstance(each, click.Option)}
    for key in settings.TOML_KEYS[table]:
        if (own := KEYS.get(f"{table}.{key}")) is not None:
            yield [code(key), *own]
        elif table == "risk":
            yield [code(key), LIMITS[key][0], _show_limit(key), LIMITS[key][1] + _list_words(key)]
        elif key in options:
            kind, default, text = _describe(options[key])
            many = options[key].multiple
            yield [code(key), f"list, or a {kind}" if many else kind, default, text.replace(" May be repeated.", "")]
        else:
            raise SystemExit(f"[{table}] {key} is no option of `dry-work {table}` and stands not in KEYS")
    if table == "risk" and (unknown := set(LIMITS) - set(SETTING_NAMES)):
        raise SystemExit(f"limits that are none: {unknown}")


def _show_limit(name: str) -> str:
    value = getattr(RiskLimits(), name)
    if name == "price_collar":
        return f"{value * 100:g} %"
    return str(value)


def _list_words(name: str) -> str:
    kind = next(field.type for field in msgspec.structs.fields(RiskLimits) if field.name == name)
    words = [member.default.strip("'\"") for member in read_fields(kind)] if name in _WORDS else []
    return f": {', '.join(words)}" if words else ""


_WORDS = ("loss_action", "open_orders")


# Options


def _get_command(name: str) -> click.Command:
    command = cli.get_command(click.Context(cli), name)
    assert command is not None
    return command


def _list_options() -> Iterator[list[str]]:
    rows: dict[tuple[str, str, str, str], list[str]] = {}
    for name in COMMANDS:
        for option in _get_command(name).params:
            if isinstance(option, click.Option) and not option.hidden:
                shown = ", ".join(map(code, (*option.opts, *option.secondary_opts)))
                rows.setdefault((shown, *_describe(option)), []).append(name)
    for (shown, kind, default, text), commands in sorted(rows.items(), key=lambda row: row[0][0].strip("`-")):
        yield [shown, kind, default, ", ".join(commands), text]


def _describe(option: click.Option) -> tuple[str, str, str]:
    """Return type, default and meaning of an option."""
    text = " ".join((option.help or "").replace("\b", "").split())
    default = ""
    if said := re.search(r" ?Default: (.+?)\.(?= |$)", text):
        default = said[1]
        text = text.replace(said[0], "").strip()
    elif isinstance(option.default, str | int | float | Path) and not isinstance(option.default, bool):
        default = str(option.default)
    if shown := re.search(r" ?\[default: (.+?)\]", text):
        default, text = shown[1], text.replace(shown[0], "").strip()
    return _name_type(option), default, text


def _name_type(option: click.Option) -> str:
    if option.is_flag:
        return "switch"
    kind: Mapping[str, Any] = option.type.to_info_dict()
    if kind["param_type"] == "Choice":
        return "choice: " + ", ".join(kind["choices"])
    limits = [f"{word} {kind[name]}" for word, name in (("from", "min"), ("to", "max")) if kind.get(name) is not None]
    names = {"Int": "number", "IntRange": "number", "Float": "number", "FloatRange": "number", "Path": "path"}
    return " ".join([names.get(kind["param_type"], "path" if option.metavar in ("FILE", "DIR") else "text"), *limits])


if __name__ == "__main__":
    PAGE.write_text(build_page(), encoding="utf-8")
    sys.stdout.write(f"wrote {PAGE}\n")
