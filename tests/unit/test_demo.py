"""The demo's judgement: every kind of wrong is seen, and only that kind."""

from __future__ import annotations

from dataclasses import asdict, replace
from threading import Event, Thread
from typing import Any

import pytest

from cdc_relay.demo.application import Pace
from cdc_relay.demo.observer import Seen
from cdc_relay.demo.verdict import Ledger, Verdict, Written, judge, percentiles_ms

A = [Written(id_, "a", seq, b"a%d" % seq) for seq, id_ in enumerate((1, 3, 5))]
B = [Written(id_, "b", seq, b"b%d" % seq) for seq, id_ in enumerate((2, 4))]
GOOD = Ledger(
    written=[*A, *B],
    outbox=dict.fromkeys((1, 2, 3, 4, 5), "consumed"),
    histories={"a": [b"a0", b"a1", b"a2"], "b": [b"b0", b"b1"]},
    message_counts={"a": 3, "b": 2, "silent": 0},
)
IDS = (1, 2, 3, 4, 5)
BAD = ("lost", "duplicates_applied", "out_of_order", "invented", "wrong_counts")


def verdict(*, ids: tuple[int, ...] = IDS, **changes: Any) -> Verdict:
    return judge(replace(GOOD, **changes), [Seen(row_id, "k", 0.0) for row_id in ids], [0.001, 0.002])


def wrong(found: Verdict) -> dict[str, int]:
    return {name: count for name, count in asdict(found).items() if name in BAD and count}


def test_all_is_well() -> None:
    found = verdict()
    assert wrong(found) == {}
    assert (found.inserted, found.published, found.consumed, found.redelivered) == (5, 5, 5, 0)
    assert found.is_good


def test_a_second_copy_in_kafka_is_allowed_and_counted() -> None:
    found = verdict(ids=(1, 2, 3, 1, 2, 4, 5))
    assert found.redelivered == 2
    assert found.is_good


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"ids": (1, 2, 3, 4)}, {"lost": 1}),
        ({"outbox": {**GOOD.outbox, 4: "published"}}, {"lost": 1}),
        ({"outbox": {k: v for k, v in GOOD.outbox.items() if k != 4}}, {"lost": 1}),
        ({"histories": {"a": [b"a0", b"a2"], "b": [b"b0", b"b1"]}}, {"lost": 1}),
        ({"histories": {"a": [b"a0", b"a1", b"a2"]}}, {"lost": 2}),
        ({"histories": {"a": [b"a0", b"a1", b"a1", b"a2"], "b": [b"b0", b"b1"]}}, {"duplicates_applied": 1}),
        ({"histories": {"a": [b"a0", b"a2", b"a1"], "b": [b"b0", b"b1"]}}, {"out_of_order": 1}),
        ({"ids": (3, 1, 5, 2, 4)}, {"out_of_order": 1}),
        ({"ids": (1, 2, 3, 4, 5, 9)}, {"invented": 1}),
        ({"ids": (0, 1, 2, 3, 4, 5)}, {"invented": 1}),
        ({"outbox": {**GOOD.outbox, 9: "pending"}}, {"invented": 1}),
        ({"histories": {"a": [b"a0", b"XX", b"a2"], "b": [b"b0", b"b1"]}}, {"lost": 1, "invented": 1}),
        ({"histories": {"a": [b"a0", b"a1", b"a2", b"b0"], "b": [b"b0", b"b1"]}}, {"invented": 1}),
        ({"message_counts": {"a": 4, "b": 2}}, {"wrong_counts": 1}),
        ({"message_counts": {"a": 3, "b": 2, "silent": 1}}, {"wrong_counts": 1}),
    ],
)
def test_what_is_wrong_is_counted_by_its_kind(changes: dict[str, Any], expected: dict[str, int]) -> None:
    found = verdict(**changes)
    assert wrong(found) == expected
    assert not found.is_good


def test_a_second_copy_out_of_order_is_no_disorder() -> None:
    # At-least-once: after a crash earlier records come again behind later ones; the first copies are in order.
    assert verdict(ids=(1, 2, 3, 1, 3, 4, 5)).out_of_order == 0


@pytest.mark.parametrize(
    ("latencies", "p50", "p99", "highest"),
    [
        ([], None, None, None),
        ([0.004], 4.0, 4.0, 4.0),
        ([-0.001, 0.002], 0.0, 2.0, 2.0),
        ([n / 1000 for n in range(1, 101)], 50.0, 99.0, 100.0),
    ],
)
def test_percentiles_are_by_nearest_rank(
    latencies: list[float], p50: float | None, p99: float | None, highest: float | None
) -> None:
    assert percentiles_ms(latencies) == {"p50": p50, "p99": p99, "max": highest}


def test_writers_wait_while_too_much_is_on_its_way() -> None:
    pace, stop, passed = Pace(rate=0, max_open=10), Event(), Event()
    pace.wait(10, stop)

    def write_more() -> None:
        pace.wait(1, stop)
        passed.set()

    waiting = Thread(target=write_more)
    waiting.start()
    assert not passed.wait(0.1)
    pace.done(1)
    assert passed.wait(30)
    waiting.join()


def test_a_stop_ends_the_waiting() -> None:
    pace, stop = Pace(rate=0.001, max_open=1), Event()
    stop.set()
    pace.wait(500, stop)
