"""`dry-work status`: which agents there are, how they are, and their books beside the venue's."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dry_work.cli.deploy_target import choose_target, target_options
from dry_work.errors import BrokerError, BrokerUnavailableError, CodecError, ConfigError, DryWorkError, VenueAuthError

if TYPE_CHECKING:
    from dry_work.alpaca.venue_api import VenueApi
    from dry_work.broker.books_reader import JournalBooks
    from dry_work.broker.own_books import OwnOrder
    from dry_work.broker.status import Comparison, VenueSnapshot
    from dry_work.cli.deployments import Deployment
    from dry_work.engine.health import AgentHealth
    from dry_work.orders.model import VenueOrder
    from dry_work.settings import Credentials

REQUEST_TIMEOUT_S = 5.0
PAGES = 10  # of 500 orders, looked at to explain a difference
LOOK_UPS = 25  # orders that are asked for one by one
LOOKS = 3  # at a trader that runs: a fill may be on its way
_LOOK_AGAIN_S = 1.0
_CHAIN = 16  # replacements that are followed


@click.command("status")
@click.argument("agent", required=False)
@click.option("--state-dir", type=click.Path(), metavar="DIR", help="Where the agents' state is. Default: ./.dry-work.")
@click.option("--no-venue", is_flag=True, help="Show our books alone; the venue is not asked.")
@target_options
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead.")
def command(
    agent: str | None,
    state_dir: str | None,
    no_venue: bool,
    target: str | None,
    url: str | None,
    token_file: Path | None,
    folder: Path | None,
    as_json: bool,
) -> int:
    """List agents, or show one: its deployment, its health, and its books beside the venue's, marked where they differ.

    Without AGENT all agents of the state directory are listed, unless there is only one. With one, the venue is asked
    when ALPACA_API_KEY and ALPACA_SECRET_KEY are set and are those of the agent's account; agents that were deployed to
    this machine bring theirs. Nothing is written and no trader waits for it, also when it hangs or was killed. With
    --url the deploy service is asked.

    \b
    Examples:
      dry-work status
      dry-work status my-agent
      dry-work status my-agent --state-dir /var/lib/trading-agent --json
      dry-work status my-agent --url https://us-central1-my-project.cloudfunctions.net

    Exit codes: 0 all is equal, or the venue was not to be asked; 1 the books differ or could not be compared, a
    deployment failed, or an agent died or hangs while it has open orders or positions; 2 usage, or credentials of
    another account.
    """
    from dry_work import settings as s
    from dry_work.cli.deployments import choose_deployment, find_deployments
    from dry_work.clock import SystemClock
    from dry_work.engine.health import list_agents

    here = Path.cwd()
    given = state_dir or s.read_toml(here / "dry-work.toml").get("state_dir")
    deployments: list[Deployment] = []
    is_named = bool(url or folder is not None or target)
    # An image of the runtime has no part of the deploy service.
    if not state_dir and (is_named or find_spec("deploy") is not None):
        try:
            deployments = find_deployments(choose_target(target, url, token_file, folder))
        except DryWorkError as error:
            if is_named:
                raise
            click.echo(f"deployments: {error}", err=True)  # what is on this machine is shown all the same
    roots = [Path(given)] if given else [s.DEFAULT_STATE_DIR, s.POD_STATE_DIR]
    if url or folder is not None:
        roots = []  # of that service only
    now_ns = SystemClock().time_ns()
    own_roots = [found.state_dir for found in deployments if found.state_dir is not None]
    deployment = None
    if agent is not None:
        deployment = choose_deployment(agent, deployments)
        deployments = [] if deployment is None else [deployment]
        if deployment is not None:
            roots, own_roots = [], [deployment.state_dir] if deployment.state_dir is not None else []
    agents = list_agents([root for root in (*roots, *own_roots) if root.is_dir()], now_ns=now_ns)
    if not agents and not deployments:
        where = " and ".join(str(root) for root in roots) or (url or str(folder))
        raise ConfigError(f"no agent has run with {where}: name its state directory with --state-dir")
    if agent is not None and deployment is None:
        agents = [choose_agent(agent, agents)]
    if len(agents) != 1 or len(deployments) > 1 or (deployments and agents[0].path != deployments[0].state_dir):
        return _list(agents, deployments, now_ns=now_ns, as_json=as_json)
    environment = s.read_environment(here)
    if deployments:
        environment = deployments[0].environment
        deployment = deployments[0]
    return _show(agents[0], environment, deployment, now_ns=now_ns, no_venue=no_venue, as_json=as_json)


def choose_agent(agent: str, agents: Iterable[AgentHealth]) -> AgentHealth:
    """Return the agent with this id.

    Raises:
        ConfigError: there is none, or there are several; says which there are.
    """
    from difflib import get_close_matches

    agents = list(agents)
    found = [health for health in agents if agent in health.names or agent == health.name]
    if len(found) > 1:
        raise ConfigError(
            f"several agents {agent!r}: in {', '.join(str(health.path) for health in found)}; "
            "name one of the folders with --state-dir"
        )
    if found:
        return found[0]
    names = sorted({name for health in agents for name in (health.names or (health.name,))})
    near = get_close_matches(agent, names, n=3)
    hint = f"did you mean {' or '.join(near)}?" if near else f"there are: {', '.join(names)}"
    raise ConfigError(f"no agent {agent!r}; {hint}")


def _list(agents: list[AgentHealth], deployments: list[Deployment], *, now_ns: int, as_json: bool) -> int:
    from dry_work.cli.deployments import build_deployment_list
    from dry_work.cli.status_view import Summary, build_list, list_to_json

    rows: list[Summary] = []
    for health in agents:
        books, problem = _read_books(health)
        rows.append(Summary.of(health, books, problem))
    if as_json:
        click.echo(json.dumps(list_to_json(rows) | {"deployments": [found.to_json() for found in deployments]}))
    else:
        if deployments:
            _print(build_deployment_list(deployments))
        if rows:
            _print(build_list(rows, now_ns=now_ns))
    is_well = all(found.is_well for found in deployments)
    return 0 if is_well and not any(row.needs_attention for row in rows) else 1


def _show(
    health: AgentHealth,
    environment: Mapping[str, str],
    deployment: Deployment | None,
    *,
    now_ns: int,
    no_venue: bool,
    as_json: bool,
) -> int:
    from dry_work.broker.own_books import build_orders
    from dry_work.broker.status import Comparison, compare
    from dry_work.cli.deployments import describe_deployment
    from dry_work.cli.status_view import Detail, Summary, build_detail, detail_to_json

    books, problem = _read_books(health)
    comparison, snapshot, code = Comparison(positions=(), orders=()), None, 0
    said = ""
    if books is not None:
        comparison = compare(books, build_orders(books), None)
        try:
            found = None if no_venue else _open_venue(books, health, environment)
            if found is not None:
                api, credentials_of = found
                try:
                    comparison, snapshot, books = _compare_often(api, books, health, credentials_of)
                finally:
                    api.close()
                code = 0 if comparison.is_equal else 1
            said = "not asked" if no_venue else ""
        except NotComparedError as error:
            said, code = str(error), error.exit_code
        except VenueAuthError as error:
            said, code = f"{error}; set ALPACA_API_KEY and ALPACA_SECRET_KEY of the agent's account", 2
        except ConfigError as error:
            said, code = str(error), 2
        except (BrokerError, CodecError) as error:
            said, code = f"not reached: {error}; what is shown is the journal alone", 1
    detail = Detail(
        summary=Summary.of(health, books, problem),
        books=books,
        comparison=comparison,
        snapshot=snapshot,
        venue_note=said,
    )
    if detail.needs_attention or (deployment is not None and not deployment.is_well):
        code = max(code, 1)
    if as_json:
        shown = None if deployment is None else deployment.to_json()
        click.echo(json.dumps(detail_to_json(detail) | {"deployment": shown}))
    else:
        if deployment is not None:
            _print(describe_deployment(deployment))
        _print(build_detail(detail, now_ns=now_ns))
    return code


class NotComparedError(Exception):
    """The venue is not asked, or its answer is not about the agent's account."""

    def __init__(self, message: str, *, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def _read_books(health: AgentHealth) -> tuple[JournalBooks | None, str]:
    """Return what the agent's journal says, or None and why not."""
    from dry_work.broker.books_reader import read_books

    if not health.journal_path.is_file():
        return None, ""
    try:
        return read_books(health.journal_path), ""
    except ConfigError as error:
        return None, str(error)


def _print(parts: Iterable[Any]) -> None:
    from rich.console import Console

    console = Console(highlight=False, markup=False)
    for part in parts:
        console.print(part)


# The venue


def _open_venue(
    books: JournalBooks, health: AgentHealth, environment: Mapping[str, str]
) -> tuple[VenueApi, str] | None:
    """Return the API of the agent's account and its id.

    Raises:
        NotComparedError: there is nothing to ask, or no way to.
        ConfigError: the settings contradict each other.
    """
    from dry_work.alpaca.venues import choose_account_id, open_venue
    from dry_work.engine.health import Life
    from dry_work.settings import parse_account_id, read_variable

    account = books.account
    if account is None:
        raise NotComparedError("not asked: no run has begun, so it is not known whose account it is", exit_code=0)
    if account.mode == "local" and health.life in (Life.STOPPED, Life.DIED):
        raise NotComparedError("not asked: the local exchange has ended with the run", exit_code=0)
    url, keys = _choose_venue(account.url, account.mode, environment)
    if keys is None:
        raise NotComparedError(
            "not asked: set ALPACA_API_KEY and ALPACA_SECRET_KEY to see its books beside ours", exit_code=0
        )
    if not url:
        raise NotComparedError(
            f"not asked: the journal names {account.url}, which is not Alpaca's; set ALPACA_URL to it if it is yours",
            exit_code=1,
        )
    named = parse_account_id(read_variable(environment, "ALPACA_ACCOUNT_ID"))
    venue = open_venue(
        keys.key,
        keys.secret,
        url=url,
        account_id=choose_account_id(url, account.account_id, named),
        paper=False,  # nothing is traded here
        timeout_s=REQUEST_TIMEOUT_S,
    )
    return venue.open_api(), account.account_id


def _choose_venue(recorded: str, mode: str, environment: Mapping[str, str]) -> tuple[str, Credentials | None]:
    """Return the address and the key pair to ask with; no address: the recorded one is not to be trusted with keys."""
    from dry_work import settings as s
    from dry_work.addresses import is_loopback_url

    if mode == "local":
        from dry_work.embedded.stack import CREDENTIALS

        return (recorded if is_loopback_url(recorded) else ""), CREDENTIALS
    pairs = ("ALPACA_API_KEY", "ALPACA_SECRET_KEY", "ALPACA_API_SECRET")
    if not any(environment.get(name) for name in (*pairs, "PAPER_ALPACA_API_KEY_ID", "PAPER_ALPACA_API_SECRET_KEY")):
        return recorded, None
    keys = s.read_credentials(environment)
    named = s.read_variable(environment, "ALPACA_URL")
    if named:
        return s.parse_url(named, name="ALPACA_URL"), keys
    # A state directory may come from anywhere: its word is not enough to send keys to.
    known = (s.PAPER_URL, s.LIVE_URL, s.BROKER_SANDBOX_URL, s.BROKER_LIVE_URL)
    return (recorded if recorded in known or is_loopback_url(recorded) else ""), keys


def _compare_often(
    api: VenueApi, books: JournalBooks, health: AgentHealth, account_id: str
) -> tuple[Comparison, VenueSnapshot, JournalBooks]:
    """Compare, and look again while the agent runs and its books differ: a fill may be on its way to them."""
    from dry_work.broker.own_books import build_orders
    from dry_work.broker.status import compare
    from dry_work.engine.health import Life

    for look in range(LOOKS):
        if look:
            time.sleep(_LOOK_AGAIN_S)
            again, problem = _read_books(health)
            if again is None:
                raise NotComparedError(problem, exit_code=1)
            books = again
        orders = build_orders(books)
        snapshot = fetch_snapshot(api, books, orders, account_id)
        comparison = compare(books, orders, snapshot)
        if comparison.is_equal or health.life is not Life.RUNNING:
            break
    return comparison, snapshot, books


def fetch_snapshot(api: VenueApi, books: JournalBooks, orders: list[OwnOrder], account_id: str) -> VenueSnapshot:
    """Return what the venue says, as far as it is needed to compare.

    Raises:
        NotComparedError: it is another account.
        BrokerError: the venue did not answer.
    """
    from msgspec.structs import replace

    from dry_work.broker.status import VenueSnapshot, compare, list_doubts

    account = api.account()
    if account_id != account.id:
        raise NotComparedError(
            "the credentials are those of another account than the agent trades with: set those of its account",
            exit_code=2,
        )
    snapshot = VenueSnapshot(account=account, positions=tuple(api.positions()), open_orders=tuple(api.open_orders()))
    doubts = list_doubts(orders, books, snapshot)
    snapshot = replace(snapshot, looked_up={own.name: _look_up(api, own) for own in doubts[:LOOK_UPS]})
    symbols = set(compare(books, orders, snapshot).symbols_to_explain())
    symbols.update(own.symbol for own in doubts[LOOK_UPS:])
    if not symbols:
        return snapshot
    history, is_whole = _list_orders(api, sorted(symbols))
    snapshot = replace(snapshot, history=tuple(history), is_history_whole=is_whole)
    found = {name: order for order in history for name in (order.client_order_id, order.id)}
    looked_up = dict(snapshot.looked_up)
    for own in doubts[LOOK_UPS:]:
        last = next((found[name] for name in (*own.order_ids[::-1], *own.names[::-1]) if name in found), None)
        if last is not None:
            looked_up[own.name] = last
    return replace(snapshot, looked_up=looked_up)


def _look_up(api: VenueApi, own: OwnOrder) -> VenueOrder | None:
    """Return the order that stands for ours at the venue now, None when the venue does not know it."""
    found: VenueOrder | None = None
    for name in own.names[::-1]:
        found = api.order_by_client_id(name) if found is None else found
    for order_id in own.order_ids[::-1]:
        found = api.order(order_id) if found is None else found
    for _ in range(_CHAIN):
        if found is None or not found.replaced_by:
            break
        found = api.order(found.replaced_by) or found
    return found


def _list_orders(api: VenueApi, symbols: list[str]) -> tuple[list[VenueOrder], bool]:
    """Return the newest orders of these symbols, of all states, and whether these are all there are."""
    from dry_work.alpaca.venue_api import OPEN_ORDERS_LIMIT
    from dry_work.wire.alpaca_rest import parse_order
    from dry_work.wire.pubsub import encode_time

    found: dict[str, VenueOrder] = {}
    query: dict[str, object] = {"status": "all", "limit": OPEN_ORDERS_LIMIT, "symbols": ",".join(symbols)}
    for _ in range(PAGES):
        rows = api.call("GET", "/orders", query)
        if not isinstance(rows, list):
            raise BrokerUnavailableError("/orders: the answer is no list")
        page = [parse_order(row) for row in rows]
        new = [order for order in page if order.id not in found]
        found.update((order.id, order) for order in page)
        if len(page) < OPEN_ORDERS_LIMIT:
            return list(found.values()), True
        if not new:  # more orders of one moment than a page holds
            break
        # With those of the same moment again, which the page may have cut.
        query["until"] = encode_time(page[-1].submitted_ns + 1000)
    return list(found.values()), False
