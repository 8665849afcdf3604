"""Properties, errors, retries, metrics and the registry: the consumer's small parts, without servers."""

from __future__ import annotations

import math
import re
import threading
from typing import Any

import pymysql
import pytest
from confluent_kafka import Consumer, Producer
from confluent_kafka import KafkaError as Reported
from confluent_kafka.admin import AdminClient
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry
from sqlalchemy.exc import DataError, OperationalError

from cdc_relay.config import KafkaSettings
from cdc_relay.errors import (
    ConfigurationError,
    DatabaseContended,
    DatabaseError,
    DatabaseUnavailable,
    KafkaError,
    KafkaUnavailable,
    PoisonRow,
    RelayError,
    RetryableRow,
    RowError,
)
from consumer import kafka_errors, topics
from consumer.handlers import default_registry
from consumer.metrics import STUCK_AFTER_S, ConsumerMetrics
from consumer.outage import LONGEST_WAIT_S, ride_out_with
from consumer.plan import Counts, Outcome
from consumer.properties import (
    admin_properties,
    consumer_properties,
    make_client,
    member_properties,
    producer_properties,
)
from consumer.registry import Handler, HandlerRegistry
from consumer.unit_of_work import quoted, translate_refusal
from tests.consumer_fakes import note_handler


def kafka(**properties: Any) -> KafkaSettings:
    return KafkaSettings(
        bootstrap_servers="127.0.0.1:1",
        properties={name.replace("_", "."): value for name, value in properties.items()},
    )


# --- properties


def test_the_consumer_commits_by_itself_reads_committed_records_and_starts_at_the_beginning() -> None:
    properties = consumer_properties(kafka(), "group")
    assert properties["group.id"] == "group"
    assert properties["enable.auto.commit"] is False
    assert properties["auto.offset.reset"] == "earliest"
    assert properties["isolation.level"] == "read_committed"
    assert properties["partition.assignment.strategy"] == "cooperative-sticky"


def test_where_the_broker_shares_out_the_partitions_the_members_do_not() -> None:
    """librdkafka refuses the strategy then, and no user would know where it came from."""
    properties = consumer_properties(kafka(group_protocol="consumer"), "group")
    assert properties["group.protocol"] == "consumer"
    assert "partition.assignment.strategy" not in properties
    assert (
        consumer_properties(kafka(partition_assignment_strategy="range"), "group")["partition.assignment.strategy"]
        == "range"
    )


def test_the_user_has_the_last_word_on_properties() -> None:
    properties = consumer_properties(kafka(isolation_level="read_uncommitted", fetch_min_bytes=7), "group")
    assert (properties["isolation.level"], properties["fetch.min.bytes"]) == ("read_uncommitted", 7)


@pytest.mark.parametrize("name", ["enable.auto.commit", "auto.commit.enable"])
@pytest.mark.parametrize("value", [True, "true", 1])
def test_a_property_that_would_lose_records_is_refused(name: str, value: str | bool | int) -> None:
    settings = KafkaSettings(bootstrap_servers="127.0.0.1:1", properties={name: value})
    with pytest.raises(ConfigurationError, match=f"{name} must stay false"):
        consumer_properties(settings, "group")


def test_properties_meant_for_the_relay_and_for_consumers_each_reach_their_client_only() -> None:
    given = kafka(linger_ms=5, acks="1", transactional_id="t", session_timeout_ms=6000, socket_keepalive_enable=True)
    consumer, producer = consumer_properties(given, "group"), producer_properties(given, timeout_s=10)
    assert "session.timeout.ms" in consumer
    assert not {"linger.ms", "acks", "transactional.id"} & consumer.keys()
    assert (producer["linger.ms"], producer["acks"], producer["enable.idempotence"]) == (5, "all", True)
    assert not {"session.timeout.ms", "transactional.id"} & producer.keys()
    assert not {"linger.ms", "session.timeout.ms"} & admin_properties(given).keys()
    assert all(each["socket.keepalive.enable"] for each in (consumer, producer, admin_properties(given)))


def test_members_of_one_program_have_names_of_their_own_where_members_have_names() -> None:
    named = consumer_properties(kafka(group_instance_id="host-1"), "group")
    assert [member_properties(named, n)["group.instance.id"] for n in range(2)] == ["host-1-0", "host-1-1"]
    assert "group.instance.id" not in member_properties(consumer_properties(kafka(), "group"), 1)


def test_librdkafka_takes_the_properties() -> None:
    settings = kafka(linger_ms=5, compression_type="zstd", session_timeout_ms=6000)
    make_client(Consumer, consumer_properties(settings, "group")).close()
    make_client(Producer, producer_properties(settings, timeout_s=10)).flush(0)
    make_client(AdminClient, admin_properties(settings))


def test_a_property_that_librdkafka_does_not_know_is_a_configuration_error() -> None:
    with pytest.raises(ConfigurationError, match=r"kafka\.properties: .*no.such"):
        make_client(Consumer, consumer_properties(kafka(no_such=1), "group"))


# --- topics


def test_topics_are_required() -> None:
    with pytest.raises(ConfigurationError, match=r"consumer\.topics is required"):
        topics.check_names([], ".dlq")


@pytest.mark.parametrize("name", ["", "a b", "..", "^regex.*", "x" * 246, "ü"])
def test_a_topic_that_cannot_be_is_named(name: str) -> None:
    with pytest.raises(ConfigurationError, match=r"no legal Kafka topic"):
        topics.check_names(["good", name], ".dlq")


# --- errors


@pytest.mark.parametrize(
    "code",
    [Reported._AUTHENTICATION, Reported.TOPIC_AUTHORIZATION_FAILED, Reported.GROUP_AUTHORIZATION_FAILED],
)
def test_what_waiting_does_not_cure_is_final_and_has_a_hint(code: int) -> None:
    error = kafka_errors.translate(Reported(code), "reading t")
    assert type(error) is KafkaError
    assert not error.retriable
    assert error.hint


@pytest.mark.parametrize(
    "code", [Reported._ALL_BROKERS_DOWN, Reported._TRANSPORT, Reported._MSG_TIMED_OUT, Reported.UNKNOWN_TOPIC_OR_PART]
)
def test_what_may_pass_is_an_outage(code: int) -> None:
    assert isinstance(kafka_errors.translate(Reported(code), "reading t"), KafkaUnavailable)


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (1406, PoisonRow),
        (1366, PoisonRow),
        (1264, PoisonRow),
        (3819, PoisonRow),
        (1452, RetryableRow),
        (1213, DatabaseContended),
        (1205, DatabaseContended),
        (2013, DatabaseUnavailable),
        (1146, DatabaseError),
        (1142, DatabaseError),
    ],
)
def test_a_value_that_mysql_refuses_is_told_from_an_outage(code: int, kind: type[RelayError]) -> None:
    wrapper = DataError if kind is PoisonRow else OperationalError
    error = translate_refusal(wrapper("INSERT", {}, pymysql.err.DataError(code, "Data too long")))
    assert isinstance(error, kind)
    assert isinstance(error, RowError) == issubclass(kind, RowError)
    assert error.retriable == kind.retriable
    assert str(code) in str(error)


# --- retries


def test_an_outage_is_ridden_out_with_growing_bounded_waits() -> None:
    waits: list[float] = []
    told: list[RelayError] = []

    def action() -> None:
        if len(waits) < 12:
            raise DatabaseUnavailable("away")

    ride_out_with(threading.Event(), told.append)(action, waits.append)
    assert len(waits) == len(told) == 12
    assert all(0 < wait <= LONGEST_WAIT_S for wait in waits)
    assert waits[0] <= 0.2


def test_what_is_no_outage_is_raised_at_once() -> None:
    calls: list[int] = []

    def action() -> None:
        calls.append(1)
        raise DatabaseError("the table is gone")

    with pytest.raises(DatabaseError):
        ride_out_with(threading.Event(), lambda error: None)(action, lambda seconds: None)
    assert calls == [1]


def test_a_stop_ends_the_waiting() -> None:
    stop = threading.Event()

    def action() -> None:
        raise KafkaUnavailable("away")

    with pytest.raises(KafkaUnavailable):
        ride_out_with(stop, lambda error: None)(action, lambda seconds: stop.set())


# --- metrics


def sample(registry: CollectorRegistry, name: str, **labels: str) -> float | None:
    return registry.get_sample_value(name, labels)


def test_every_outcome_is_a_series_from_the_start() -> None:
    registry = CollectorRegistry()
    ConsumerMetrics(registry)
    for outcome in Outcome:
        assert sample(registry, "cdc_consumer_records_total", outcome=outcome) == 0


def test_a_batch_is_counted() -> None:
    registry = CollectorRegistry()
    counted = ConsumerMetrics(registry, clock=lambda: 1000.0)
    worker = counted.worker()
    worker.turned(Counts({Outcome.CONSUMED: 3, Outcome.DEAD: 1}), 0.02, parked_keys=2)
    worker.turned(Counts(), 0.0, parked_keys=2)
    assert sample(registry, "cdc_consumer_records_total", outcome="consumed") == 3
    assert sample(registry, "cdc_consumer_batch_seconds_count") == 1
    assert sample(registry, "cdc_consumer_parked_keys") == 2
    assert sample(registry, "cdc_consumer_last_progress_timestamp_seconds") == 1000
    assert counted.state()["Records consumed"] == 3


def test_health_is_a_turning_loop_and_readiness_is_taking_part() -> None:
    now = [1000.0]
    registry = CollectorRegistry()
    state = ConsumerMetrics(registry, clock=lambda: now[0])
    assert state.health().ok
    assert not state.ready().ok
    worker = state.worker()
    worker.looked(2, 17)
    assert state.ready().ok
    assert sample(registry, "cdc_consumer_lag_records") == 17

    worker.outage(DatabaseUnavailable("MySQL is away"))
    assert state.health().ok
    assert not state.ready().ok
    assert "MySQL is away" in state.ready().checks["outage"]
    assert sample(registry, "cdc_consumer_database_retries_total") == 1
    worker.outage(KafkaUnavailable("away"))
    assert sample(registry, "cdc_consumer_kafka_retries_total") == 1

    worker.turned(Counts(), 0.0, parked_keys=0)
    assert state.ready().ok
    now[0] += STUCK_AFTER_S + 1
    assert not state.health().ok
    assert not state.ready().ok


def test_what_several_workers_report_is_added_up() -> None:
    registry = CollectorRegistry()
    now = [1000.0]
    metrics = ConsumerMetrics(registry, clock=lambda: now[0])
    one, other = metrics.worker(), metrics.worker()
    one.looked(3, 17)
    assert math.isnan(sample(registry, "cdc_consumer_lag_records") or 0.0), "the other has not said yet"
    other.looked(2, 5)
    one.turned(Counts({Outcome.CONSUMED: 3}), 0.02, parked_keys=2)
    other.turned(Counts({Outcome.CONSUMED: 4}), 0.02, parked_keys=1)
    assert sample(registry, "cdc_consumer_lag_records") == 22
    assert sample(registry, "cdc_consumer_assigned_partitions") == 5
    assert sample(registry, "cdc_consumer_parked_keys") == 3
    assert sample(registry, "cdc_consumer_records_total", outcome="consumed") == 7
    assert metrics.state()["Records consumed"] == 7


def test_one_worker_that_hangs_or_waits_is_told_of_the_whole_program() -> None:
    now = [1000.0]
    metrics = ConsumerMetrics(CollectorRegistry(), clock=lambda: now[0])
    one, other = metrics.worker(), metrics.worker()
    one.looked(6, 0)
    assert metrics.ready().ok, "more workers than partitions are no error"
    other.outage(DatabaseUnavailable("away"))
    one.turned(Counts(), 0.0, parked_keys=0)
    assert not metrics.ready().ok
    other.turned(Counts(), 0.0, parked_keys=0)
    assert metrics.ready().ok
    now[0] += STUCK_AFTER_S + 1
    one.turned(Counts(), 0.0, parked_keys=0)
    assert not metrics.health().ok


# --- SQL


@given(st.text())
def test_a_quoted_text_ends_where_it_is_meant_to(value: str) -> None:
    literal = quoted(value)
    assert literal[0] == literal[-1] == "'"
    # As MySQL reads it: after a backslash any character, a quote only doubled.
    inside = re.fullmatch(r"(?:[^'\\]|\\.|'')*", literal[1:-1], re.DOTALL)
    assert inside
    assert re.sub(r"\\(.)|''", lambda found: found[1] or "'", inside[0], flags=re.DOTALL) == value


# --- registry


def test_two_handlers_of_one_type_are_a_mistake() -> None:
    with pytest.raises(ValueError, match="two handlers for biz_type 'note'"):
        HandlerRegistry([note_handler(), note_handler()])


def test_the_handlers_that_ship_are_listed_to_whoever_asks_for_another() -> None:
    with pytest.raises(PoisonRow, match="chat_history_persist"):
        default_registry().read("unheard of", {})


def test_a_defect_of_a_handler_costs_only_the_rows_that_it_fails_on() -> None:
    def apply(work: object, events: object) -> None:
        raise KeyError("oops")

    handlers = HandlerRegistry(
        [Handler("buggy", read=lambda payload: payload["x"], apply=apply, check=lambda work: None)]
    )
    with pytest.raises(PoisonRow, match="the handler of 'buggy' failed: TypeError"):
        handlers.read("buggy", None)
    with pytest.raises(RetryableRow, match="the handler of 'buggy' failed: KeyError: 'oops'"):
        handlers.apply(object(), "buggy", [])  # type: ignore[arg-type]  # nobody looks at it
