"""Which records a member of a consumer group hands out when partitions come and go; the group itself is a fake."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from confluent_kafka import TIMESTAMP_NOT_AVAILABLE, KafkaError, TopicPartition

from consumer import source as module
from consumer.source import KafkaSource

P = TopicPartition("chat", 0)


class Message:
    def __init__(self, offset: int) -> None:
        self._offset = offset

    def error(self) -> Any:
        return None

    def topic(self) -> str:
        return P.topic

    def partition(self) -> int:
        return P.partition

    def offset(self) -> int:
        return self._offset

    def key(self) -> bytes:
        return b"k"

    def value(self) -> bytes:
        return b"%d" % self._offset

    def timestamp(self) -> tuple[int, int]:
        return TIMESTAMP_NOT_AVAILABLE, -1

    def headers(self) -> list[tuple[str, bytes]]:
        return []


class Client:
    """librdkafka's consumer with a script: offsets to give, and what happens to the group in between."""

    def __init__(self) -> None:
        self.script: deque[int | Callable[[], None]] = deque()
        self.messages: deque[Message] = deque()
        self.subscribed: dict[str, Callable[[Any, Sequence[TopicPartition]], None]] = {}
        self.subscriptions = 0
        self.assigned: list[TopicPartition] = []
        self.sought: list[TopicPartition] = []

    def subscribe(self, topics: list[str], **callbacks: Any) -> None:
        self.subscribed = callbacks
        self.subscriptions += 1

    def unsubscribe(self) -> None:
        self.subscribed = {}

    def poll(self, timeout: float) -> Message | None:
        while self.script:
            step = self.script.popleft()
            if isinstance(step, int):
                return Message(step)
            step()
            if self.messages:
                return self.messages.popleft()
        time.sleep(min(timeout, 0.02))
        return None

    def pause(self, partitions: list[TopicPartition]) -> None:
        pass

    def resume(self, partitions: list[TopicPartition]) -> None:
        pass

    def assignment(self) -> list[TopicPartition]:
        return self.assigned

    def seek(self, at: TopicPartition) -> None:
        self.sought.append(at)

    def lose(self) -> None:
        self.subscribed["on_lost"](self, [P])

    def assign(self) -> None:
        self.subscribed["on_assign"](self, [P])


class Rig:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.client = Client()
        self.replaced: set[str] = set()
        monkeypatch.setattr(module, "make_client", lambda *_, **__: self.client)
        self.source = KafkaSource(
            {}, ["chat"], batch_rows=100, batch_bytes=10**6, batch_wait_s=0.0,
            replaced=lambda: self.replaced, stop=threading.Event(),
        )  # fmt: skip

    def batch(self, *script: int | Callable[[], None]) -> list[int]:
        self.client.script.extend(script)
        return [record.offset for record in self.source.next_batch()]


@pytest.fixture
def rig(monkeypatch: pytest.MonkeyPatch) -> Rig:
    return Rig(monkeypatch)


def test_a_record_without_a_time_has_none(rig: Rig) -> None:
    rig.client.script.append(3)
    (record,) = rig.source.next_batch()
    assert record.timestamp_ms == 0


def test_a_partition_that_is_lost_and_comes_back_is_read_from_where_the_group_is(rig: Rig) -> None:
    assert rig.batch(3, 4, 5, rig.client.lose, rig.client.assign, 3, 4, 5, 6) == [3, 4, 5, 6]
    assert rig.source.assignments == 1


def test_what_came_while_a_batch_waited_goes_first_unless_its_partition_is_lost(rig: Rig) -> None:
    rig.client.script.extend([7])
    assert rig.source.keep_alive(1.0) == set()
    assert rig.batch(8) == [7, 8]
    rig.client.script.extend([9, rig.client.lose, rig.client.assign, 7])
    assert rig.source.keep_alive(1.0) == {("chat", 0)}
    assert rig.batch(8) == [7, 8]


def test_a_topic_made_anew_is_read_from_its_beginning(rig: Rig) -> None:
    rig.client.assigned = [P]
    rig.replaced = {"chat"}
    assert rig.batch(0, 1) == [0, 1]
    assert [at.partition for at in rig.client.sought] == [0]
    assert rig.client.subscriptions == 1


def test_a_topic_made_anew_of_which_nothing_is_ours_is_shared_out_again(rig: Rig) -> None:
    """The group may have been told that it has no partitions, and nobody would look again."""
    rig.replaced = {"chat"}
    assert rig.batch() == []
    assert rig.client.subscriptions == 2


class Refused(Message):
    """What librdkafka says when it could not learn where to begin (its issue 5586)."""

    def error(self) -> Any:
        return KafkaError(KafkaError.NOT_COORDINATOR, "Failed to fetch committed offsets for 0 partition(s) in group")

    def topic(self) -> Any:
        return None


def test_the_group_is_joined_anew_when_it_did_not_tell_where_to_begin(rig: Rig) -> None:
    rig.client.script.append(lambda: rig.client.messages.append(Refused(0)))
    assert rig.batch() == []
    assert rig.client.subscriptions == 1
    assert rig.batch(1, 2) == [1, 2]
    assert rig.client.subscriptions == 2
    assert rig.batch(3) == [3]
    assert rig.client.subscriptions == 2
