"""What a user may set of librdkafka's properties, and what would break the promise."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from cdc_relay.config import KafkaSettings
from cdc_relay.errors import ConfigurationError
from cdc_relay.kafka.properties import BATCH_BYTES, producer_properties
from cdc_relay.kafka.publisher import KafkaPublisher
from cdc_relay.preflight.kafka import kafka_checks
from tests.harness import eventually


def settings(**properties: Any) -> KafkaSettings:
    dotted = {name.replace("_", "."): value for name, value in properties.items()}
    return KafkaSettings(bootstrap_servers="127.0.0.1:1", properties=dotted)


@pytest.mark.parametrize(
    ("properties", "names"),
    [
        ({"enable_idempotence": False}, "enable.idempotence is False and must be true"),
        ({"enable_idempotence": "false", "acks": 0}, "enable.idempotence is 'false' and must be true"),
        ({"delivery_report_only_error": "true"}, "delivery.report.only.error is 'true' and must be false"),
        ({"transactional_id": "mine"}, "transactional.id must not be set"),
        # These librdkafka refuses.
        ({"acks": 1}, "`acks` must be set to `all`"),
        ({"request_required_acks": 0}, "`acks` must be set to `all`"),
        ({"retries": 0}, "`retries` must be set"),
        ({"max_in_flight": 10}, "`max.in.flight` must be set"),
        ({"queuing_strategy": "lifo"}, "`queuing.strategy` must be set"),
        ({"linger_ms": "soon"}, "Invalid value"),
        ({"no_such": 1}, "No such configuration property"),
    ],
)
def test_what_would_break_the_promise_is_refused_by_start_and_check(properties: dict[str, Any], names: str) -> None:
    for make in (KafkaPublisher, lambda given: kafka_checks(given, [])):
        with pytest.raises(ConfigurationError, match=r"kafka\.properties: ") as refused:
            make(settings(**properties))
        assert names in str(refused.value)


def test_everything_else_is_the_users() -> None:
    given = {"linger_ms": 2, "compression_type": "zstd", "partitioner": "consistent", "enable_idempotence": "true"}
    found = producer_properties(settings(**given))
    assert {name.replace("_", "."): value for name, value in given.items()}.items() <= found.items()
    assert (found["acks"], found["batch.size"]) == ("all", BATCH_BYTES)


@pytest.mark.parametrize(("users", "learned", "used"), [(500, 1_000, 500), (2_000, 1_000, 1_000)])
def test_batches_are_as_small_as_the_user_or_experience_wants(users: int, learned: int, used: int) -> None:
    assert producer_properties(settings(batch_size=users), batch_bytes=learned)["batch.size"] == used


def test_the_producer_is_not_told_what_is_for_the_consumer(caplog: pytest.LogCaptureFixture) -> None:
    """librdkafka warns about each such property."""
    given = settings(group_protocol="consumer", fetch_min_bytes=5, session_timeout_ms=6000)
    assert not {"group.protocol", "fetch.min.bytes", "session.timeout.ms"} & producer_properties(given).keys()
    with caplog.at_level(logging.INFO, "cdc_relay.kafka"):
        publisher = KafkaPublisher(given)
        eventually(lambda: publisher.poll(0.1) or caplog.records, "a word of librdkafka")  # that no broker is there
        publisher.close()
    assert "CONFWARN" not in caplog.text
