"""Names, labels, settings and pages of Pub/Sub, as Google documents them."""

from __future__ import annotations

import pytest

from dry_work.embedded import pubsub_rules
from dry_work.embedded.pubsub_core import PubSubCore
from dry_work.embedded.pubsub_rules import RequestError, SubscriptionSettings, check_labels, check_name, paginate

TOPIC = "projects/p/topics/bars"
NAME = "projects/p/subscriptions/agent"


@pytest.mark.parametrize(
    "name",
    ["bars", "projects/p/topics/", "projects//topics/bars", "projects/p/topics/ab", "projects/p/topics/1ab",
     "projects/p/topics/goog-x", "projects/p/topics/a b", f"projects/p/topics/{'a' * 256}",
     "projects/p/subscriptions/bars", "projects/p/topics/bars/x"],
)  # fmt: skip
def test_a_name_that_google_does_not_allow_is_refused(name: str) -> None:
    with pytest.raises(RequestError) as raised:
        check_name(name, "topics")
    assert raised.value.code == "INVALID_ARGUMENT"
    assert name in raised.value.message


@pytest.mark.parametrize("topic_id", ["abc", "a" * 255, "A-b_c.d~e+f%20", "agoog"])
def test_a_name_that_google_allows_is_taken(topic_id: str) -> None:
    core = PubSubCore(max_backlog_bytes=1_000, nonce=1)
    core.create_topic(f"projects/p/topics/{topic_id}")
    assert [topic.name for topic in core.topics("projects/p")] == [f"projects/p/topics/{topic_id}"]


@pytest.mark.parametrize(
    "labels",
    [{"Owner": "x"}, {"owner": "X"}, {"1x": "x"}, {"": "x"}, {"a" * 64: "x"}, {"x": "a" * 64}, {"x": "a b"},
     {f"k{number}": "" for number in range(65)}],
)  # fmt: skip
def test_labels_that_google_does_not_allow_are_refused(labels: dict[str, str]) -> None:
    with pytest.raises(RequestError, match="label"):
        check_labels(labels)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"ack_deadline_s": 9}, "10 to 600"),
        ({"ack_deadline_s": 601}, "10 to 600"),
        ({"retention_s": 599.0}, "retention"),
        ({"expiration_ttl_s": 86_399.0}, "expiration"),
        ({"filter": "symbol = 1"}, "Invalid filter"),
        ({"labels": {"X": ""}}, "label"),
    ],
)
def test_settings_that_google_does_not_allow_are_refused(changes: dict[str, object], reason: str) -> None:
    core = PubSubCore(max_backlog_bytes=1_000, nonce=1)
    core.create_topic(TOPIC)
    with pytest.raises(RequestError, match=reason) as raised:
        core.create_subscription(NAME, TOPIC, SubscriptionSettings(**changes))
    assert raised.value.code == "INVALID_ARGUMENT"
    assert core.subscriptions("projects/p") == []


def test_a_project_has_a_limit_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pubsub_rules, "MAX_RESOURCES_PER_PROJECT", 2)
    core = PubSubCore(max_backlog_bytes=1_000, nonce=1)
    core.create_topic("projects/p/topics/one")
    core.create_topic("projects/p/topics/two")
    core.create_topic("projects/other/topics/one")
    with pytest.raises(RequestError) as raised:
        core.create_topic("projects/p/topics/three")
    assert raised.value.code == "RESOURCE_EXHAUSTED"


def test_pages_neither_repeat_nor_skip_when_names_come_and_go() -> None:
    names = [f"projects/p/topics/t{number}" for number in range(5)]
    page, token = paginate(names, 2, "")
    assert page == names[:2]
    names.remove(page[1])
    names.insert(0, "projects/p/topics/a")
    page, token = paginate(names, 2, token)
    assert page == ["projects/p/topics/t2", "projects/p/topics/t3"]
    page, token = paginate(names, 2, token)
    assert (page, token) == (["projects/p/topics/t4"], "")
    for size, page_token in ((-1, ""), (2, "rubbish")):
        with pytest.raises(RequestError):
            paginate(names, size, page_token)
