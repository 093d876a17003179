"""Where an account's order updates come from."""

from __future__ import annotations

from typing import Any

from dry_work.hub.accounts import HubAccount
from dry_work.hub.bus import Bus
from dry_work.hub.upstreams.broker_events import BrokerEventsConnection
from dry_work.hub.upstreams.trade_updates import TradeUpdatesConnection

OrderConnection = TradeUpdatesConnection | BrokerEventsConnection


def build_order_connection(account: HubAccount, bus: Bus, **options: Any) -> OrderConnection:
    """Return the connection for an account's order updates: the Broker API has no WebSocket for them."""
    if account.access.account_id:
        return BrokerEventsConnection(account, bus, **options)
    return TradeUpdatesConnection(account, bus, **options)
