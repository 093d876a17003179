"""Corporate actions: of a file, or made up; told, and not carried out on positions. `CorporateActions` is pure.

The file is JSON as `GET /v1/corporate-actions` answers it: lists by type, with or without `corporate_actions` around
them. Made-up ones are a cash dividend of every stock, three weeks from the recording's end, and a split of some.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, date, datetime, timedelta
from typing import Any
from uuid import NAMESPACE_DNS, UUID, uuid5

import msgspec
from aiohttp import web

from dry_work.clock import SECOND_NS
from dry_work.errors import CodecError
from dry_work.exchange.answers import authorize, build_answer, query_limit, query_symbols, query_word
from dry_work.exchange.credentials import Credentials
from dry_work.exchange.history import admit_stock_request
from dry_work.exchange.order_rules import CODE_NOT_FOUND, CODE_REQUEST, RefusedError
from dry_work.feeds.recorded import Recording
from dry_work.market.symbols import is_crypto, is_option
from dry_work.wire.alpaca_fields import parse_json

# Each type's word in a query, and as an announcement: type and sub-type.
TYPES: Mapping[str, tuple[str, str, str]] = {
    "forward_splits": ("forward_split", "split", "stock_split"),
    "reverse_splits": ("reverse_split", "split", "reverse_split"),
    "unit_splits": ("unit_split", "split", "unit_split"),
    "stock_dividends": ("stock_dividend", "dividend", "stock"),
    "cash_dividends": ("cash_dividend", "dividend", "cash"),
    "spin_offs": ("spin_off", "spinoff", "spinoff"),
    "cash_mergers": ("cash_merger", "merger", "merger_completion"),
    "stock_mergers": ("stock_merger", "merger", "merger_completion"),
    "stock_and_cash_mergers": ("stock_and_cash_merger", "merger", "merger_completion"),
    "redemptions": ("redemption", "", ""),
    "name_changes": ("name_change", "", ""),
    "worthless_removals": ("worthless_removal", "", ""),
    "rights_distributions": ("rights_distribution", "", ""),
}
_NAMESPACE = uuid5(NAMESPACE_DNS, "corporate-actions.dry-work.invalid")
_SYMBOLS = ("symbol", "source_symbol", "old_symbol", "acquiree_symbol", "new_symbol", "acquirer_symbol")
_LARGEST_LIMIT = 1000
_LONGEST = timedelta(days=90)
_DATES = ("ex_date", "record_date", "payable_date")
_DATE_TYPES = ("ex_date", "declaration_date", "record_date", "payable_date")
_SPLIT_EVERY = 5  # of the made-up ones


class Action(msgspec.Struct, frozen=True):
    """One corporate action: its type, and the fields that Alpaca has for it."""

    kind: str
    fields: Mapping[str, Any]

    @property
    def id(self) -> str:
        return str(self.fields["id"])

    @property
    def process_date(self) -> date:
        return date.fromisoformat(self.fields["process_date"])

    def names(self, wanted: Sequence[str], suffix: str) -> bool:
        """Tell whether one of its symbols (or, with `suffix` cusip, of their numbers) is wanted."""
        return any(self.fields.get(name.replace("symbol", suffix)) in wanted for name in _SYMBOLS)

    def first(self, suffix: str) -> str:
        """Return the symbol, or the number, of the company that it is of."""
        return next(
            (str(self.fields[key]) for name in _SYMBOLS if (key := name.replace("symbol", suffix)) in self.fields), ""
        )

    def announce(self) -> dict[str, Any]:
        """Return it as an announcement of the older endpoint."""
        _, kind, sub_kind = TYPES[self.kind]
        fields = self.fields
        cash = fields["rate"] if self.kind == "cash_dividends" else fields.get("cash_rate", 0)
        target = fields.get("new_symbol") or fields.get("acquirer_symbol")
        return {
            "id": self.id,
            "corporate_action_id": f"{self.first('cusip')}_{kind[:2].upper()}{self.process_date:%y%m%d}",
            "ca_type": kind,
            "ca_sub_type": sub_kind,
            "initiating_symbol": self.first("symbol"),
            "initiating_original_cusip": self.first("cusip"),
            "target_symbol": target or self.first("symbol"),
            "target_original_cusip": fields.get("new_cusip") or fields.get("acquirer_cusip") or self.first("cusip"),
            "declaration_date": fields["process_date"],
            "effective_date": fields.get("effective_date"),
            **{name: fields.get(name) for name in _DATES},
            "cash": str(cash),
            "old_rate": str(fields.get("old_rate", fields.get("source_rate", 1))),
            "new_rate": str(fields.get("new_rate", 1)),
        }


class CorporateActions:
    """All actions, by the date on which they are processed."""

    def __init__(self, actions: Sequence[Action] = ()) -> None:
        self.actions = tuple(sorted(actions, key=lambda found: (found.process_date, found.kind, found.id)))


def make_actions(recording: Recording) -> CorporateActions:
    """Make up actions for the stocks of a recording: SYNTHETIC, as their CUSIPs show."""
    last = datetime.fromtimestamp(int(recording.slice_ends()[-1]) // SECOND_NS, UTC).date()
    actions = []
    for symbol in recording.symbols:
        if is_crypto(symbol) or is_option(symbol):
            continue
        number = int.from_bytes(hashlib.sha256(f"actions {symbol}".encode()).digest()[:4], "big")
        ex = last + timedelta(days=21 + number % 5)
        dates = {
            "process_date": ex.isoformat(),
            "ex_date": ex.isoformat(),
            "record_date": ex.isoformat(),
            "payable_date": (ex + timedelta(days=14)).isoformat(),
        }
        shared = {"symbol": symbol, "cusip": f"SYN{number % 10**6:06d}", **dates}
        dividend = {"rate": round(0.05 + number % 95 / 100, 2), "special": False, "foreign": False}
        actions.append(_build("cash_dividends", {**shared, **dividend}))
        if number % _SPLIT_EVERY == 0:
            actions.append(_build("forward_splits", {**shared, "new_rate": 2, "old_rate": 1}))
    return CorporateActions(actions)


def _build(kind: str, fields: Mapping[str, Any]) -> Action:
    made = str(uuid5(_NAMESPACE, f"{kind} {sorted(fields.items())}"))
    return Action(kind, {"id": fields.get("id", made), **fields})


def parse_actions(data: bytes) -> CorporateActions:
    """Read a file of corporate actions.

    Raises:
        CodecError: with a sentence about what cannot be used.
    """
    body = parse_json(data)
    if isinstance(body, dict) and isinstance(body.get("corporate_actions"), dict):
        body = body["corporate_actions"]
    if not isinstance(body, dict) or not body.keys() <= TYPES.keys():
        raise CodecError(f"corporate actions are a JSON object of lists, by some of {', '.join(TYPES)}")
    actions = []
    for kind, rows in body.items():
        for number, row in enumerate(rows if isinstance(rows, list) else [rows], start=1):
            where = f"{kind}, row {number}"
            if not isinstance(row, dict):
                raise CodecError(f"{where} is no JSON object")
            try:
                date.fromisoformat(str(row.get("process_date")))
                UUID(str(row.get("id", _NAMESPACE)))
            except ValueError:
                raise CodecError(
                    f"{where}: expected a process_date as 2024-06-11, and a UUID where it has an id"
                ) from None
            actions.append(_build(kind, {name: _plain(value) for name, value in row.items()}))
    return CorporateActions(actions)


def _plain(value: Any) -> Any:
    return value if value is None or isinstance(value, (str, bool, int)) else float(value)


class CorporateActionsApi:
    """Answers `/v1/corporate-actions` and the older `/v2/corporate_actions/announcements`.

    Args:
        actions: all of them.
        now_ns: the exchange's time.
    """

    def __init__(self, actions: CorporateActions, *, credentials: Credentials, now_ns: Callable[[], int]) -> None:
        self._actions = actions
        self._credentials = credentials
        self._now_ns = now_ns

    def add_routes(self, router: web.UrlDispatcher) -> None:
        """Serve both endpoints."""
        router.add_get("/v1/corporate-actions", self._get_actions)
        router.add_get("/v2/corporate_actions/announcements", self._get_announcements)
        router.add_get("/v2/corporate_actions/announcements/{announcement_id}", self._get_announcement)

    async def _get_actions(self, request: web.Request) -> web.Response:
        admit_stock_request(self._credentials, request)
        limit = query_limit(request, "limit", default=100, largest=_LARGEST_LIMIT, code=0)
        newest_first = query_word(request, "sort", ("asc", "desc"), code=0) == "desc"
        symbols, cusips = query_symbols(request), _split(request, "cusips")
        kinds, ids = {kind.lower() for kind in _split(request, "types")}, _split(request, "ids")
        unknown = kinds - {word for word, _, _ in TYPES.values()}
        if unknown:
            raise RefusedError(400, 0, f"invalid types: {', '.join(sorted(unknown))[:80]}")
        today = datetime.fromtimestamp(self._now_ns() // SECOND_NS, UTC).date()
        start, end = _query_day(request, "start", 0) or today, _query_day(request, "end", 0)
        if end is None:
            end = max(today, start)
        if ids and (symbols or cusips or kinds or "start" in request.query or "end" in request.query):
            raise RefusedError(400, 0, "ids are given alone: without symbols, cusips, types, start and end")
        found = [
            action
            for action in self._actions.actions
            if (action.id in ids if ids else start <= action.process_date <= end)
            and (not symbols or action.names(symbols, "symbol"))
            and (not cusips or action.names(cusips, "cusip"))
            and (not kinds or TYPES[action.kind][0] in kinds)
        ]
        if newest_first:
            found.reverse()
        first = _read_token(request)
        rows = found[first : first + limit]
        answer: dict[str, list[Any]] = {}
        for action in rows:
            answer.setdefault(action.kind, []).append(dict(action.fields))
        last = first + len(rows)
        token = base64.urlsafe_b64encode(str(last).encode()).decode() if last < len(found) else None
        return build_answer({"corporate_actions": answer, "next_page_token": token})

    async def _get_announcements(self, request: web.Request) -> web.Response:
        authorize(self._credentials, request)
        kinds = {kind.lower() for kind in _split(request, "ca_types")}
        since, until = _query_day(request, "since", CODE_REQUEST), _query_day(request, "until", CODE_REQUEST)
        if not kinds or since is None or until is None:
            raise RefusedError(422, CODE_REQUEST, "ca_types, since and until are required")
        unknown = kinds - {"dividend", "merger", "spinoff", "split"}
        if unknown:
            raise RefusedError(422, CODE_REQUEST, f"invalid ca_types: {', '.join(sorted(unknown))[:80]}")
        if until - since > _LONGEST:
            raise RefusedError(422, CODE_REQUEST, "the date range is limited to 90 days")
        by = query_word(request, "date_type", _DATE_TYPES, code=CODE_REQUEST)
        symbol, cusip = request.query.get("symbol", "").upper(), request.query.get("cusip", "")
        rows = []
        for action in self._actions.actions:
            if TYPES[action.kind][1] not in kinds or (symbol and not action.names([symbol], "symbol")):
                continue
            row = action.announce()
            day = row[by] or row["declaration_date"]
            if since <= date.fromisoformat(day) <= until and cusip in ("", row["initiating_original_cusip"]):
                rows.append(row)
        return build_answer(rows)

    async def _get_announcement(self, request: web.Request) -> web.Response:
        authorize(self._credentials, request)
        asked = request.match_info["announcement_id"].lower()
        for action in self._actions.actions:
            if action.id == asked and TYPES[action.kind][1]:
                return build_answer(action.announce())
        raise RefusedError(404, CODE_NOT_FOUND, f"announcement not found for {asked[:40]}")


def _split(request: web.Request, name: str) -> list[str]:
    return [part.strip() for part in request.query.get(name, "").split(",") if part.strip()]


def _query_day(request: web.Request, name: str, code: int) -> date | None:
    text = request.query.get(name)
    if not text:
        return None
    try:
        return date.fromisoformat(text[:10])
    except ValueError:
        raise RefusedError(422 if code else 400, code, f"invalid {name}: {text[:40]}") from None


def _read_token(request: web.Request) -> int:
    token = request.query.get("page_token", "")
    try:
        row = int(base64.urlsafe_b64decode(token)) if token else 0
    except (ValueError, binascii.Error):
        row = -1
    if row < 0:
        raise RefusedError(400, 0, "invalid page_token")
    return row
