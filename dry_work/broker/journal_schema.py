"""The tables of the orders journal. Part of `journal`; those of `journal_books` and `journal_pruned` are theirs."""

from __future__ import annotations

SCHEMA = """
CREATE TABLE session (
    agent TEXT NOT NULL,
    session TEXT NOT NULL,
    started_ns INTEGER NOT NULL,       -- venue time
    PRIMARY KEY (agent, session)
);
CREATE TABLE intents (
    client_order_id TEXT PRIMARY KEY,
    agent TEXT NOT NULL,
    session TEXT NOT NULL,
    number INTEGER NOT NULL,
    symbol TEXT NOT NULL,
    side TEXT NOT NULL,
    type TEXT NOT NULL,
    time_in_force TEXT NOT NULL,
    qty TEXT,
    limit_price TEXT,
    stop_price TEXT,
    intended_ns INTEGER NOT NULL
);
CREATE TABLE outcomes (
    id INTEGER PRIMARY KEY,
    client_order_id TEXT NOT NULL,
    action TEXT NOT NULL,              -- submit, replace, cancel, end
    outcome TEXT NOT NULL,             -- accepted, refused, unknown; of an end: Alpaca's word
    order_id TEXT,
    code INTEGER,
    message TEXT,
    at_ns INTEGER NOT NULL
);
CREATE TABLE fills (
    execution_id TEXT PRIMARY KEY,
    client_order_id TEXT NOT NULL,
    symbol TEXT NOT NULL,
    side TEXT NOT NULL,
    qty TEXT NOT NULL,
    price TEXT NOT NULL,
    ts_event_ns INTEGER NOT NULL
);
"""

# Beside the schema, so that a journal from before them gets them as well. Other processes read and write these tables.
RISK_SCHEMA = """
CREATE TABLE IF NOT EXISTS risk_transitions (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    state TEXT NOT NULL,               -- active, reducing, flattening, halted
    reason TEXT NOT NULL,
    who TEXT NOT NULL,                 -- limit:<name>, operator or trader
    at_ns INTEGER NOT NULL,
    token TEXT NOT NULL,               -- part of the ids of the orders that close positions
    taken_ns INTEGER                   -- when the trader has taken note of it
);
CREATE TABLE IF NOT EXISTS risk_marks (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    day INTEGER NOT NULL,              -- since 1970, UTC
    day_equity TEXT NOT NULL,
    peak TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS account (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    agent TEXT NOT NULL,
    account_id TEXT NOT NULL,
    url TEXT NOT NULL,
    mode TEXT NOT NULL                 -- local, paper or live
);
"""
# What an order of a group, the second part of a split order or a replacement belongs to, and what its intent's row has
# no column for. The legs of a group get their client order ids from the venue: here stand our names for them.
LINKS_SCHEMA = """
CREATE TABLE IF NOT EXISTS order_links (
    client_order_id TEXT PRIMARY KEY,
    parent TEXT NOT NULL,              -- client order id
    role TEXT NOT NULL                 -- take_profit, stop_loss, remainder, replacement
);
CREATE TABLE IF NOT EXISTS request_bodies (
    client_order_id TEXT PRIMARY KEY,
    body TEXT NOT NULL                 -- JSON, as it is sent
);
"""
