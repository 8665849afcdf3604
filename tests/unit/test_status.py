"""The life of a row, as the contract draws it."""

from __future__ import annotations

import pytest

from cdc_relay.outbox.status import TRANSITIONS, Status


def test_the_values_are_those_of_the_column() -> None:
    assert [str(status) for status in Status] == ["pending", "published", "consumed", "dead"]
    assert Status("pending") is Status.PENDING
    assert f"{Status.DEAD}" == "dead"


@pytest.mark.parametrize(
    ("status", "following"),
    [
        (Status.PENDING, {"pending", "published", "consumed", "dead"}),
        (Status.PUBLISHED, {"pending", "consumed", "dead"}),
        (Status.CONSUMED, set()),
        (Status.DEAD, {"pending", "dead"}),
    ],
)
def test_which_status_may_follow_which(status: Status, following: set[str]) -> None:
    assert TRANSITIONS[status] == following


def test_every_status_is_reached_from_pending_and_consumed_is_the_one_final_end() -> None:
    reached, before = {Status.PENDING}, set[Status]()
    while reached != before:
        before, reached = reached, reached.union(*(TRANSITIONS[status] for status in reached))
    assert reached == set(Status) == set(TRANSITIONS)
    assert [status for status in Status if not TRANSITIONS[status]] == [Status.CONSUMED]
