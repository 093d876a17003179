"""What is subscribed upstream follows what is wanted, and a refusal costs only what is refused."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dry_work.hub.events import ALL
from dry_work.hub.upstreams.subscription_plan import BATCH, Change, SubscriptionPlan, Wish, count_symbols


class Server:
    """Answers as Alpaca does: a message is carried out as a whole or not at all."""

    def __init__(self, *, limit: int = 10_000, bad: Iterable[str] = (), without_all: Iterable[str] = ()) -> None:
        self.limit = limit
        self.bad = set(bad)
        self.without_all = set(without_all)
        self.subscribed: set[Wish] = set()
        self.watermarks = False
        self.messages: list[Change] = []

    def answer(self, change: Change) -> int:
        """Return the code of the error, 0 when the message is carried out."""
        self.messages.append(change)
        wishes = set(change.wishes)
        if change.action == "unsubscribe":
            self.subscribed -= wishes
            return 0
        if any(symbol == ALL and channel in self.without_all for channel, symbol in wishes):
            return 413
        if any(symbol in self.bad for _, symbol in wishes):
            return 400
        if len(self.subscribed | wishes) > self.limit:
            return 405
        self.subscribed |= wishes
        self.watermarks = self.watermarks or change.has_watermarks
        return 0


def settle(plan: SubscriptionPlan, server: Server, wishes: Iterable[Wish]) -> None:
    """Talk until nobody has anything to say."""
    wanted = list(wishes)
    waiting = plan.next(wanted)
    for _ in range(10_000):
        if not waiting:
            return
        code = server.answer(waiting.pop(0))
        if code:
            plan.take_error(code)
        else:
            plan.take_list()
        waiting += plan.next(wanted)
    raise AssertionError("it does not come to an end")


def bars(*symbols: str) -> list[Wish]:
    return [("bars", symbol) for symbol in symbols]


def test_what_is_wanted_is_subscribed_in_batches_and_the_watermarks_come_last() -> None:
    plan, server = SubscriptionPlan(takes_watermarks=True), Server()
    settle(plan, server, bars(*(f"A{number}" for number in range(2 * BATCH + 1))))
    assert [(len(change.wishes), change.has_watermarks) for change in server.messages] == [
        (BATCH, False),
        (BATCH, False),
        (1, True),
    ]


def test_places_are_given_back_before_others_are_taken() -> None:
    plan, server = SubscriptionPlan(), Server(limit=2)
    settle(plan, server, bars("A", "B"))
    settle(plan, server, bars("B", "C"))
    assert server.subscribed == set(bars("B", "C"))
    assert plan.refused == 0


def test_names_stay_subscribed_until_all_are_and_go_then() -> None:
    plan, server = SubscriptionPlan(), Server()
    settle(plan, server, bars("A"))
    (subscribe,) = plan.next(bars("A", ALL))
    assert subscribe.wishes == (("bars", ALL),)
    server.answer(subscribe)
    plan.take_list()
    settle(plan, server, bars("A", ALL))
    assert server.subscribed == set(bars(ALL))
    settle(plan, server, bars("A"))
    assert [(change.action, change.wishes) for change in server.messages[-2:]] == [
        ("subscribe", (("bars", "A"),)),
        ("unsubscribe", (("bars", ALL),)),
    ]


def test_where_all_are_refused_the_names_are_kept_and_the_other_channels_too() -> None:
    plan, server = SubscriptionPlan(), Server(without_all=["quotes"])
    settle(plan, server, [("quotes", "A"), ("trades", ALL)])
    wanted = [("quotes", "A"), ("quotes", ALL), ("trades", ALL), ("quotes", "B"), ("bars", "A")]
    settle(plan, server, wanted)
    assert server.subscribed == {("quotes", "A"), ("quotes", "B"), ("trades", ALL), ("bars", "A")}
    assert all(change.action == "subscribe" for change in server.messages)
    assert plan.refused == 1
    count = len(server.messages)
    settle(plan, server, wanted)
    assert len(server.messages) == count, "it is not asked for again"


def test_the_limit_is_used_up_and_what_is_over_it_waits_for_others_to_let_go() -> None:
    plan, server = SubscriptionPlan(), Server(limit=30)
    symbols = [f"A{number}" for number in range(100)]
    settle(plan, server, bars(*symbols))
    assert len(server.subscribed) == 30
    assert plan.refused == 70
    assert len(server.messages) <= 20
    count = len(server.messages)
    settle(plan, server, bars(*symbols, "B"))
    assert len(server.messages) == count, "what is over the limit is not asked for"
    settle(plan, server, bars(*symbols[10:], "B"))
    assert len(server.subscribed) == 30
    assert not server.subscribed & set(bars(*symbols[:10]))


def test_a_bad_symbol_costs_the_others_nothing_and_is_asked_for_again_when_it_is_wanted_anew() -> None:
    plan, server = SubscriptionPlan(takes_watermarks=True), Server(bad=["A7"])
    symbols = [f"A{number}" for number in range(20)]
    settle(plan, server, bars(*symbols))
    assert server.subscribed == set(bars(*symbols)) - {("bars", "A7")}
    assert server.watermarks
    server.bad.clear()
    without = [symbol for symbol in symbols if symbol != "A7"]
    settle(plan, server, bars(*without))
    settle(plan, server, bars(*symbols))
    assert server.subscribed == set(bars(*symbols))


def test_a_server_that_refuses_everything_is_not_asked_for_ever() -> None:
    symbols = [f"A{number}" for number in range(1_000)]
    plan, server = SubscriptionPlan(takes_watermarks=True), Server(bad=symbols)
    settle(plan, server, bars(*symbols))
    assert plan.refused == 1_000
    assert len(server.messages) < 1_000


def test_an_answer_that_nobody_has_asked_for_changes_nothing() -> None:
    plan, server = SubscriptionPlan(), Server()
    plan.take_list()
    assert plan.take_error(405) == ()
    (change,) = plan.next(bars("A"))
    assert plan.take_error(403) == (), "it is no answer to a subscription"
    server.answer(change)
    plan.take_list()
    settle(plan, server, bars("A"))
    assert server.subscribed == set(bars("A"))


def test_symbols_are_counted_once_for_each_channel() -> None:
    channels = {"trades": ["A", "B"], "corrections": ["A", "B"], "bars": ["A"], "watermarks": ["*"]}
    assert count_symbols(channels, besides=["watermarks"]) == 3


def test_what_is_asked_for_again_before_its_refusal_has_come_is_not_forgotten() -> None:
    plan, server = SubscriptionPlan(), Server(limit=1)
    in_flight = [*plan.next(bars("A", "B")), *plan.next([]), *plan.next(bars("A"))]
    for change in in_flight:
        code = server.answer(change)
        plan.take_error(code) if code else plan.take_list()
    assert server.subscribed == set(bars("A"))
    settle(plan, server, [])
    assert server.subscribed == set()


CHANNELS = ("bars", "quotes")
SYMBOLS = ("A", "B", "C", "D", "E", "BAD", ALL)
WISHES = st.lists(st.tuples(st.sampled_from(CHANNELS), st.sampled_from(SYMBOLS)), unique=True)


@settings(max_examples=200, deadline=None)
@given(st.lists(WISHES, min_size=1, max_size=6), st.integers(1, 8), st.booleans(), st.randoms(use_true_random=False))
def test_in_the_end_the_server_holds_what_is_wanted_and_allowed(
    rounds: list[list[Wish]], limit: int, takes_watermarks: bool, random: object
) -> None:
    plan, server = (
        SubscriptionPlan(takes_watermarks=takes_watermarks),
        Server(limit=limit, bad=["BAD"], without_all=["quotes"]),
    )
    in_flight: list[Change] = []
    for wishes in rounds:  # what is wanted changes while answers are on their way
        in_flight += plan.next(wishes)
        for _ in range(random.randrange(3)):  # type: ignore[attr-defined]
            if in_flight:
                code = server.answer(in_flight.pop(0))
                plan.take_error(code) if code else plan.take_list()
    while in_flight:
        code = server.answer(in_flight.pop(0))
        plan.take_error(code) if code else plan.take_list()
    settle(plan, server, rounds[-1])
    wanted = set(rounds[-1])
    allowed = {wish for wish in wanted if wish != ("quotes", ALL) and wish[1] != "BAD"}
    assert server.subscribed <= allowed
    if len(server.subscribed) < limit:  # everything, if not by its name
        everything = ("bars", ALL) in server.subscribed
        assert {wish for wish in allowed if not (everything and wish[0] == "bars")} <= server.subscribed


@pytest.mark.parametrize("code", [400, 405, 410, 412, 413])
def test_a_lone_wish_that_is_refused_is_not_asked_for_again(code: int) -> None:
    plan = SubscriptionPlan()
    assert len(plan.next(bars("A"))) == 1
    assert plan.take_error(code) == (("bars", "A"),)
    assert plan.next(bars("A")) == []
    assert plan.refused == 1
