from __future__ import annotations

import sys
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from cdc_relay.delivery import Delivery
from cdc_relay.errors import KafkaUnavailable, PoisonRow, RetryableRow
from cdc_relay.outbox.envelope import Record
from tests.fakes import FakePublisher, Refusal


def record_of(row_id: int, topic: str = "t") -> Record:
    return Record(topic, b"k", b'{"outbox_id": %d, "biz_type": "b", "payload": {}}' % row_id, [])


class Outcome:
    """What becomes of deliveries."""

    def __init__(self) -> None:
        self.done: list[Delivery] = []
        self.settled = 0

    def settle(self) -> None:
        self.settled += 1


def delivery_of(publisher: FakePublisher, outcome: Outcome) -> Delivery:
    return Delivery(publisher, outcome.done.append, path="tail", on_settled=outcome.settle)


@pytest.fixture
def publisher() -> FakePublisher:
    return FakePublisher(answers=False)


@pytest.fixture
def outcome() -> Outcome:
    return Outcome()


class AnyInterleaving(RuleBasedStateMachine):
    """Sending, Kafka's answers and the end of sending, in any order that can be."""

    def __init__(self) -> None:
        super().__init__()
        self.publisher = FakePublisher(answers=False)
        self.outcome = Outcome()
        self.delivery = delivery_of(self.publisher, self.outcome)
        self.closed = False
        self.answers: dict[int, str] = {}

    @precondition(lambda self: not self.closed)
    @rule()
    def send(self) -> None:
        row_id = len(self.delivery.sent) + 1
        self.delivery.send(row_id, record_of(row_id))

    @precondition(lambda self: self.publisher.waiting)
    @rule(answer=st.sampled_from(["ok", "ok", "poison", "retry", "given up"]))
    def report(self, answer: str) -> None:
        self.answers[len(self.answers) + 1] = answer
        self.publisher.answer(
            {
                "ok": None,
                "poison": Refusal(PoisonRow("no")),
                "retry": Refusal(RetryableRow("later")),
                "given up": Refusal(None),
            }[answer]
        )
        self.publisher.poll(0)

    @precondition(lambda self: not self.closed)
    @rule()
    def close(self) -> None:
        self.closed = True
        self.delivery.close()

    @rule()
    def poll(self) -> None:
        self.publisher.poll(0)

    @invariant()
    def it_is_done_once_when_all_is_in_and_answered(self) -> None:
        complete = self.closed and len(self.answers) == len(self.delivery.sent)
        assert self.outcome.done == ([self.delivery] if complete else [])
        if complete:
            by_answer = {kind: [n for n, a in self.answers.items() if a == kind] for kind in set(self.answers.values())}
            assert self.delivery.abandoned == ("given up" in by_answer)
            assert sorted(self.delivery.failed) == sorted([*by_answer.get("poison", []), *by_answer.get("retry", [])])
            if not self.delivery.abandoned:
                assert self.delivery.published == by_answer.get("ok", [])
        assert self.outcome.settled == 0


TestAnyInterleaving = AnyInterleaving.TestCase


class AnsweredWhileItCloses(Delivery):
    """The last answer comes just as the number of rows is known: the sending and the polling thread meet."""

    meeting: FakePublisher

    @property
    def _expected(self) -> int:
        count: int = self.__dict__.get("expected", -1)
        return count

    @_expected.setter
    def _expected(self, count: int) -> None:
        self.__dict__["expected"] = count
        if count > 0:
            self.meeting.poll(0)


def test_it_is_done_once_when_the_last_answer_meets_the_end_of_sending(outcome: Outcome) -> None:
    publisher = FakePublisher()
    delivery = AnsweredWhileItCloses(publisher, outcome.done.append, path="tail")
    delivery.meeting = publisher
    delivery.send(1, record_of(1))
    delivery.close()
    assert outcome.done == [delivery]


def test_a_delivery_of_nothing_is_done_when_it_is_closed(publisher: FakePublisher, outcome: Outcome) -> None:
    delivery = delivery_of(publisher, outcome)
    delivery.failed[7] = PoisonRow("no JSON")
    assert outcome.done == []
    delivery.close()
    assert outcome.done == [delivery]
    assert delivery.published == []


def test_what_the_publisher_refuses_at_once_does_not_count_as_sent(outcome: Outcome) -> None:
    publisher = FakePublisher(missing=["nowhere"])
    delivery = delivery_of(publisher, outcome)
    with pytest.raises(RetryableRow):
        delivery.send(1, record_of(1, "nowhere"))
    delivery.send(2, record_of(2))
    delivery.close()
    publisher.poll(0)
    assert outcome.done == [delivery]
    assert (delivery.sent, delivery.published) == ([2], [2])


def test_a_publisher_that_is_gone_leaves_the_delivery_open(outcome: Outcome) -> None:
    publisher = FakePublisher()
    delivery = delivery_of(publisher, outcome)
    delivery.send(1, record_of(1))
    publisher.close()
    with pytest.raises(KafkaUnavailable):
        delivery.send(2, record_of(2))
    assert delivery.abandoned
    assert outcome.done == []


def test_refused_rows_are_not_published(publisher: FakePublisher, outcome: Outcome) -> None:
    delivery = delivery_of(publisher, outcome)
    for row_id in (5, 6, 7):
        delivery.send(row_id, record_of(row_id))
    delivery.failed[8] = PoisonRow("never sent")
    delivery.close()
    publisher.answer()
    publisher.answer(Refusal(PoisonRow("too large")))
    publisher.answer()
    publisher.poll(0)
    assert delivery.published == [5, 7]
    assert {row_id: reason.message for row_id, reason in delivery.failed.items()} == {
        8: "never sent",
        6: "too large",
    }


def test_it_is_settled_when_the_statuses_are_written_and_not_before(publisher: FakePublisher, outcome: Outcome) -> None:
    delivery = delivery_of(publisher, outcome)
    delivery.close()
    assert outcome.settled == 0
    delivery.settle()
    assert outcome.settled == 1


@given(st.integers(1, 40))
def test_each_delivery_is_done_once_with_one_thread_sending_and_one_polling(rows: int) -> None:
    publisher, outcome = FakePublisher(), Outcome()
    count = 20
    stop = threading.Event()

    def poll() -> None:
        while not stop.is_set() or publisher.in_flight:
            publisher.poll(0)

    polling = threading.Thread(target=poll)
    switch = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)  # so that the threads meet everywhere
    try:
        polling.start()
        deliveries = []
        for number in range(count):
            delivery = delivery_of(publisher, outcome)
            deliveries.append(delivery)
            for row in range(rows):
                delivery.send(number * rows + row + 1, record_of(number * rows + row + 1))
            delivery.close()
        stop.set()
        polling.join()
    finally:
        sys.setswitchinterval(switch)
    assert sorted(map(id, outcome.done)) == sorted(map(id, deliveries))
    assert [len(delivery.published) for delivery in deliveries] == [rows] * count
