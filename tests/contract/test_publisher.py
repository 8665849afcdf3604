"""What every publisher promises: the real one on a real Kafka, and the fake of the unit tests."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest
from confluent_kafka import KafkaError
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from cdc_relay.config import KafkaSettings
from cdc_relay.delivery import Delivery
from cdc_relay.embedded.kafka import KafkaBroker
from cdc_relay.errors import KafkaUnavailable, PoisonRow, RetryableRow, RowError
from cdc_relay.kafka.publisher import KafkaPublisher
from cdc_relay.outbox.envelope import Record, decode
from tests.fakes import FakePublisher
from tests.harness import PATIENCE_S, read_topic

MOST_BYTES = 100_000


class Answer:
    """A delivery report, as far as ``outcome`` looks at it."""

    def __init__(self, value: bytes | None, code: int) -> None:
        self._value, self._code = value, code

    def value(self) -> bytes | None:
        return self._value

    def topic(self) -> str:
        return "t"

    def code(self) -> int:
        return self._code

    def name(self) -> str:
        return "ERROR"

    def str(self) -> str:
        return "error"

    def fatal(self) -> bool:
        return False


@dataclass
class Case:
    """A publisher, a topic that takes records of up to ``MOST_BYTES``, and what is in it."""

    publisher: KafkaPublisher | FakePublisher
    topic: str
    taken: Callable[[int], list[bytes]]
    """The values of that many records, in order."""


@pytest.fixture(scope="module")
def strict_broker() -> Iterator[KafkaBroker]:
    """A Kafka that makes no topics by itself and takes no large records."""
    options: dict[str, str | int | bool] = {"auto.create.topics.enable": False, "message.max.bytes": MOST_BYTES}
    with KafkaBroker(options=options) as broker:
        yield broker


@pytest.fixture(params=["kafka", "fake"])
def case(request: pytest.FixtureRequest, topic: str) -> Iterator[Case]:
    if request.param == "fake":
        fake = FakePublisher(missing=["nowhere"], max_bytes=MOST_BYTES)
        yield Case(fake, topic, lambda count: [record.value for record in fake.acknowledged][:count])
        return
    broker: KafkaBroker = request.getfixturevalue("strict_broker")
    admin = AdminClient({"bootstrap.servers": broker.bootstrap_servers})
    admin.create_topics([NewTopic(topic, 1)])[topic].result(PATIENCE_S)
    settings = KafkaSettings(bootstrap_servers=broker.bootstrap_servers)
    publisher = KafkaPublisher(settings, logger=logging.getLogger("test"), batch_bytes=MOST_BYTES)
    try:
        yield Case(
            publisher,
            topic,
            lambda count: [record.value() or b"" for record in read_topic(broker.bootstrap_servers, topic, count)],
        )
    finally:
        publisher.close()


def record_of(case: Case, row_id: int, size: int = 10, topic: str | None = None) -> Record:
    value = b'{"outbox_id": %d, "biz_type": "b", "payload": "%b"}' % (row_id, b"x" * size)
    return Record(topic or case.topic, b"k", value, [("outbox_id", b"%d" % row_id)])


def deliver(case: Case, *records: Record) -> tuple[Delivery, list[Delivery]]:
    """Sent as the tailer sends: what is refused at once has failed."""
    done: list[Delivery] = []
    delivery = Delivery(case.publisher, done.append, path="tail")
    for record in records:
        row_id = decode(record.value).outbox_id
        try:
            delivery.send(row_id, record)
        except RowError as reason:
            delivery.failed[row_id] = reason
    delivery.close()
    return delivery, done


def poll_until(case: Case, done: list[Delivery]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not done:
        assert time.monotonic() < deadline, "Kafka does not answer"
        case.publisher.poll(0.1)


def test_every_record_is_taken_once_and_in_order(case: Case) -> None:
    records = [record_of(case, row_id) for row_id in range(1, 501)]
    delivery, done = deliver(case, *records)
    poll_until(case, done)
    assert (delivery.published, delivery.failed, delivery.abandoned) == (list(range(1, 501)), {}, False)
    assert case.taken(500) == [record.value for record in records]
    assert len(done) == 1
    assert case.publisher.in_flight == 0


def test_answers_come_while_polling_and_at_no_other_time(case: Case) -> None:
    _, done = deliver(case, record_of(case, 1))
    time.sleep(0.3)
    assert done == []
    poll_until(case, done)


def test_polling_tells_whether_answers_came(case: Case) -> None:
    assert case.publisher.poll(0) == 0
    _, done = deliver(case, record_of(case, 1))
    deadline = time.monotonic() + PATIENCE_S
    while not (count := case.publisher.poll(0.1)) and time.monotonic() < deadline:
        assert done == []
    assert count > 0
    assert len(done) == 1
    assert case.publisher.poll(0) == 0


def test_a_topic_that_is_not_there_is_a_failure_for_now_of_its_rows_alone(case: Case) -> None:
    delivery, done = deliver(
        case, record_of(case, 1), record_of(case, 2, topic="nowhere"), record_of(case, 3), record_of(case, 4)
    )
    poll_until(case, done)
    assert delivery.published == [1, 3, 4]
    (reason,) = delivery.failed.values()
    assert isinstance(reason, RetryableRow)
    assert "nowhere" in reason.message


def test_a_record_that_is_too_large_can_never_be_sent_and_costs_only_itself(case: Case) -> None:
    records = [record_of(case, row_id, 2 * MOST_BYTES if row_id == 5 else 1_000) for row_id in range(1, 11)]
    delivery, done = deliver(case, *records)
    poll_until(case, done)
    assert delivery.published == [1, 2, 3, 4, 6, 7, 8, 9, 10]
    assert list(delivery.failed) == [5]
    assert isinstance(delivery.failed[5], PoisonRow)
    assert not delivery.abandoned
    assert [decode(value).outbox_id for value in case.taken(9)] == delivery.published


def test_one_thread_may_send_while_another_polls(case: Case) -> None:
    stop = threading.Event()

    def poll() -> None:
        while not stop.is_set():
            case.publisher.poll(0.01)

    polling = threading.Thread(target=poll)
    polling.start()
    try:
        results = [deliver(case, *(record_of(case, n * 10 + row + 1) for row in range(10))) for n in range(100)]
        deadline = time.monotonic() + PATIENCE_S
        while not all(done for _, done in results):
            assert time.monotonic() < deadline
            time.sleep(0.01)
    finally:
        stop.set()
        polling.join()
    assert all(len(done) == 1 and len(delivery.published) == 10 for delivery, done in results)
    assert [decode(value).outbox_id for value in case.taken(1000)] == list(range(1, 1001))


def test_whoever_gives_up_refuses_no_row(case: Case) -> None:
    delivery, done = deliver(case, *(record_of(case, row_id, 1_000) for row_id in range(1, 201)))
    case.publisher.close()
    deadline = time.monotonic() + PATIENCE_S
    while not done and time.monotonic() < deadline:
        case.publisher.poll(0.1)
    # Each was taken or given up; none is at fault.
    assert delivery.failed == {}
    assert len(done) == 1


def test_the_fake_gives_up_what_a_test_has_not_answered(topic: str) -> None:
    fake = FakePublisher(answers=False)
    case = Case(fake, topic, lambda _: [])
    delivery, done = deliver(case, record_of(case, 1))
    fake.close()
    assert done == [delivery]
    assert delivery.abandoned
    with pytest.raises(KafkaUnavailable):
        fake.publish(record_of(case, 2), delivery.report)


@pytest.mark.parametrize("value", [None, b"", b"{}", b'{"outbox_id": "7"}'])
def test_a_refusal_that_names_no_row_is_no_row_s_fault(strict_broker: KafkaBroker, value: bytes | None) -> None:
    """Were it taken for a row's, the row that was refused would count as published."""
    settings = KafkaSettings(bootstrap_servers=strict_broker.bootstrap_servers)
    publisher = KafkaPublisher(settings, logger=logging.getLogger("test"))
    answer = Answer(value, KafkaError.INVALID_RECORD)
    assert publisher.outcome(answer, answer) == (0, None)
    known = Answer(b'{"outbox_id": 7, "biz_type": "b"}', KafkaError.INVALID_RECORD)
    row_id, reason = publisher.outcome(known, known)
    assert row_id == 7
    assert isinstance(reason, PoisonRow)
    publisher.close()
