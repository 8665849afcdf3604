"""``cdc-relay check``: everything that can be said of MySQL and Kafka."""

from __future__ import annotations

import time

from sqlalchemy import Connection

from cdc_relay.config import Settings
from cdc_relay.errors import DatabaseError, KafkaError
from cdc_relay.outbox.clock import utc_now
from cdc_relay.outbox.database import make_engine, transaction
from cdc_relay.outbox.envelope import is_legal_topic
from cdc_relay.outbox.operator_statements import OperatorStatements
from cdc_relay.preflight.check import Check, Level, ok
from cdc_relay.preflight.facts import essentials, extras
from cdc_relay.preflight.kafka import kafka_checks
from cdc_relay.preflight.mysql import essential_checks, extra_checks
from cdc_relay.preflight.probes import filter_check, privilege_checks, row_image_check, zone_check


def check_everything(settings: Settings) -> tuple[list[Check], list[Check]]:
    """The checks of MySQL and those of Kafka."""
    topics = set(settings.consumer.topics)
    engine = make_engine(settings.database, pool_size=1)
    try:
        with transaction(engine) as connection:
            mysql = _check_mysql(connection, settings, topics)
    except DatabaseError as error:
        mysql = [Check("connection", Level.FAIL, error.message, "a login", error.hint or "check database.url")]
    finally:
        engine.dispose()
    return mysql, kafka_checks(settings.kafka, topics)


def exit_code(mysql: list[Check], kafka: list[Check]) -> int:
    """That of the class of the first failure; 0 when there is none."""
    if any(check.level is Level.FAIL for check in mysql):
        return DatabaseError.exit_code
    return KafkaError.exit_code if any(check.level is Level.FAIL for check in kafka) else 0


def _check_mysql(connection: Connection, settings: Settings, topics: set[str]) -> list[Check]:
    table = settings.database.table
    facts = essentials(connection, table)
    checks = [
        ok("connection", f"{facts.account} to {facts.database}"),
        *essential_checks(facts, table),
        *extra_checks(facts, extras(connection, table, time.time()), table),
    ]
    if settings.tail.server_id == facts.server_id:
        checks.append(
            Check(
                "tail.server_id",
                Level.FAIL,
                f"{facts.server_id}, which is the server's own",
                "one that no server and no replica has",
                "set tail.server_id (CDC_TAIL__SERVER_ID) to another number, or leave it unset",
            )
        )
    if facts.columns:
        checks += privilege_checks(connection, settings, facts)
        checks.append(row_image_check(connection, settings, facts))
        can_read = all(check.level is Level.OK for check in checks if check.name in ("table", "SELECT"))
        if can_read:
            checks.append(zone_check(connection, settings.database, utc_now()))
            # A row with an illegal topic dies of it; that is no matter of Kafka.
            topics.update(filter(is_legal_topic, OperatorStatements(table).pending_topics(connection)))
    if facts.log_bin:
        checks.append(filter_check(connection, facts))
    return checks
