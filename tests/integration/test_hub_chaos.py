"""The hub as a process under fire, at its upstreams, its servers and itself, while fifty programs listen.

The long form is `python -m tests.faults.hub_matrix`; see docs/design/hub-faults.md.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.faults.hub_hostile import Attack
from tests.faults.hub_matrix import HEARTBEATS, Case, DataFault, Judge, OrderFault, check_counts
from tests.faults.hub_world import World

OUTAGE_S = 1.5


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    world = World(tmp_path_factory.mktemp("hub-chaos"), variables=HEARTBEATS)
    try:
        yield world
        world.pause()
        world.market.may_send.clear()
        assert check_counts(world.stop_hub()) == []
    finally:
        world.close()


@pytest.mark.parametrize(
    "case",
    [
        Case(DataFault("cut, refused 503", status=503), OrderFault("cut")),
        Case(
            DataFault("406 at login", error=406),
            OrderFault("HTTP 503", ({"on": "http", "kind": "status", "status": 503, "path": "/stream"},)),
        ),
        Case(kill="everything"),
    ],
    ids=str,
)
def test_no_update_is_lost_or_doubled_gaps_are_told_and_everybody_is_live_again(world: World, case: Case) -> None:
    verdict = Judge(world, patience=6.0).judge(case, outage_s=OUTAGE_S)
    assert verdict.wrong == []
    assert verdict.updates > 0


def test_hostile_clients_cost_the_others_nothing_and_the_hub_little(world: World) -> None:
    assert Attack(world, size=0.2).run() == []
