"""An option feed that the account does not have, as Alpaca says it."""

from __future__ import annotations

import pytest

from dry_work.engine.findings import Outcome
from dry_work.engine.remote_checks import describe_entitlement
from dry_work.wire.alpaca_rest import lacks_subscription
from tests.unit.cli.test_check import answer


def test_an_agreement_that_is_not_signed_is_no_matter_of_the_credentials() -> None:
    found = describe_entitlement(answer(403, {"message": "OPRA agreement is not signed"}), "options (opra)")
    assert found.outcome is Outcome.FAILED
    assert found.text == "HTTP 403, OPRA agreement is not signed"
    assert "ALPACA_OPTION_FEED=indicative" in found.remedy


def test_an_option_feed_that_is_not_known_is_told_with_those_that_are() -> None:
    found = describe_entitlement(answer(400, {"message": "invalid feed: both"}), "options (both)")
    assert found.remedy == "set ALPACA_OPTION_FEED to indicative or opra"


@pytest.mark.parametrize(
    ("status", "message", "lacks"),
    [
        (403, "subscription does not permit querying recent SIP data", True),
        (403, "OPRA agreement is not signed", True),
        (403, "forbidden.", False),
        (401, "no subscription", False),
        (None, "OPRA agreement is not signed", False),
    ],
)
def test_a_lack_of_a_subscription_is_told_from_wrong_credentials(status: int | None, message: str, lacks: bool) -> None:
    assert lacks_subscription(status, message) is lacks
