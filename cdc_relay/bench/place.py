"""Where is measured: a database and a topic of its own on given servers, which are gone afterwards, come what may."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack, contextmanager

from confluent_kafka import KafkaError as ErrorCode
from confluent_kafka import KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient
from confluent_kafka.admin._listoffsets import OffsetSpec
from confluent_kafka.cimpl import NewTopic
from sqlalchemy import MetaData, bindparam, text

from cdc_relay.bench.settings import altered
from cdc_relay.binlog.server import server_binlog
from cdc_relay.config import KafkaSettings, Settings
from cdc_relay.errors import ConfigurationError, DatabaseError, KafkaError, KafkaUnavailable
from cdc_relay.kafka.clients import known_to
from cdc_relay.outbox.database import make_engine, transaction
from cdc_relay.outbox.operator_statements import OperatorStatements
from cdc_relay.outbox.table import DEFAULT_TABLE, outbox_table
from cdc_relay.reconcile import ServerBinlog

DATABASE_PREFIX = "cdc_relay_bench_"
TOPIC_PREFIX = "cdc-relay-bench-"

KEYS = 5_000
SMALLEST_PAYLOAD = 200

#: For our own statements, some of which look at every row; the relay has the user's limits.
_PATIENCE_S = 300.0
_KAFKA_ANSWER_S = 10.0
_KAFKA_CHANGE_S = 30.0
_LOOK_S = 0.05

#: What waiting does not mend; all else may be a topic that was just made, or one whose leader is just changing.
_REFUSALS = (ErrorCode.TOPIC_AUTHORIZATION_FAILED, ErrorCode.CLUSTER_AUTHORIZATION_FAILED)

#: Connections that fill at once: where each commit waits for a disk, one alone would take minutes.
_FILLERS = 4
#: Rows of one call: a fraction of a second, so that progress can be told and Ctrl-C is heard.
_FILLED_A_CALL = 500
_BYTES_A_CALL = 2_000_000

#: On the server, so that no client is the bottleneck. Lengths of keys and payloads vary as an application's do.
_FILL = f"""
CREATE PROCEDURE fill(IN transactions INT, IN rows_each INT, IN topic_name VARCHAR(128), IN payload_bytes INT)
BEGIN
  DECLARE n INT DEFAULT 0;
  DECLARE m INT;
  DECLARE pad LONGTEXT DEFAULT REPEAT('lorem ipsum dolor ', CEIL(payload_bytes / 18) + 1);
  WHILE n < transactions DO
    START TRANSACTION;
    SET m = 0;
    WHILE m < rows_each DO
      INSERT INTO {DEFAULT_TABLE} (biz_type, topic, message_key, payload, next_retry_at, created_at, updated_at)
      VALUES ('chat_history_persist', topic_name, CONCAT('conversation-', FLOOR(RAND() * {KEYS})),
        CONCAT('{{"user_id": ', MOD(n, 1000), ', "conversation_id": "c', n, '", "role": "user", "message": "',
          LEFT(pad, payload_bytes - 140 + FLOOR(RAND() * 160)), '"}}'),
        UTC_TIMESTAMP(6), UTC_TIMESTAMP(6), UTC_TIMESTAMP(6));
      SET m = m + 1;
    END WHILE;
    COMMIT;
    SET n = n + 1;
  END WHILE;
END
"""


class ThrowawayOutbox:
    """A database of its own with the outbox table in it, on the server of ``settings``."""

    def __init__(self, settings: Settings) -> None:
        """Makes nothing yet: ``create`` does."""
        self.name = f"{DATABASE_PREFIX}{uuid.uuid4().hex[:8]}"
        patient = altered(settings, {"database.read_timeout_s": _PATIENCE_S})
        self._server = make_engine(patient.database, pool_size=1)
        url = patient.database.parsed.set(database=self.name).render_as_string(hide_password=False)
        # The rows are written in UTC, whatever the application's zone is.
        own = {"database.url": url, "database.table": DEFAULT_TABLE, "database.timezone": "UTC"}
        self.settings = altered(settings, own)
        """Those given, for this database."""
        self.engine = make_engine(altered(patient, own).database, pool_size=_FILLERS)
        self._statements = OperatorStatements()
        self._may_exist = False

    def create(self) -> None:
        """Make database, table and procedure. Raises DatabaseError."""
        try:
            self._make_database()
            metadata = MetaData()
            outbox_table(metadata=metadata)
            with transaction(self.engine) as connection:
                metadata.create_all(connection)
                connection.exec_driver_sql(_FILL)
        except DatabaseError as error:
            if error.retriable:
                raise
            pattern = DATABASE_PREFIX.replace("_", r"\_") + "%"
            raise DatabaseError(
                f"the database {self.name} cannot be made: {error.message}",
                hint=f"GRANT ALL ON `{pattern}`.* to this account, or give another one's --database-url",
            ) from error

    def _make_database(self) -> None:
        self._may_exist = True
        try:
            with transaction(self._server) as connection:
                connection.execute(text(f"CREATE DATABASE {self.name} CHARACTER SET utf8mb4"))
        except DatabaseError as error:
            self._may_exist = error.retriable  # a lost connection does not tell
            raise

    def drop(self) -> None:
        """Remove all of it; no error when it is not there. Raises DatabaseError."""
        self.engine.dispose()
        if self._may_exist:
            with transaction(self._server) as connection:
                connection.execute(text(f"DROP DATABASE IF EXISTS {self.name}"))
        self._server.dispose()

    def fill(
        self,
        topic: str,
        *,
        rows: int,
        rows_each: int = 1,
        payload_bytes: int = 600,
        on_progress: Callable[[int], None] = lambda _: None,
    ) -> None:
        """Commit ``rows`` rows in transactions of ``rows_each``; ``on_progress`` is told how many there are."""
        transactions = rows // rows_each
        a_call = max(1, min(_FILLED_A_CALL, _BYTES_A_CALL // payload_bytes) // rows_each)
        calls = [min(a_call, transactions - at) for at in range(0, transactions, a_call)]
        if rows % rows_each:
            self._call_fill(topic, 1, rows % rows_each, payload_bytes)
        done = rows % rows_each
        with ThreadPoolExecutor(_FILLERS) as pool:
            try:
                waiting = {pool.submit(self._call_fill, topic, n, rows_each, payload_bytes): n for n in calls}
                for call in as_completed(waiting):
                    call.result()
                    done += waiting[call] * rows_each
                    on_progress(done)
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    def _call_fill(self, topic: str, transactions: int, rows_each: int, payload_bytes: int) -> None:
        values = {"n": transactions, "each": rows_each, "topic": topic, "size": max(SMALLEST_PAYLOAD, payload_bytes)}
        with transaction(self.engine) as connection:
            connection.execute(text("CALL fill(:n, :each, :topic, :size)"), values)

    def clear(self) -> None:
        """Remove every row."""
        with transaction(self.engine) as connection:
            connection.execute(text(f"TRUNCATE TABLE {DEFAULT_TABLE}"))

    def first_left(self, statuses: Sequence[str] = ("pending",), after_id: int = 0) -> int | None:
        """The first row above ``after_id`` that is still in one of ``statuses``.

        Asked again from what it gave last it costs the server a look at each row and no more. To count them by their
        index would take half a core from what is measured, as every mark leaves an entry behind there.
        """
        sql = (
            f"SELECT id FROM {DEFAULT_TABLE} FORCE INDEX (PRIMARY) WHERE id > :after_id AND status IN :statuses "
            "ORDER BY id LIMIT 1"
        )
        statement = text(sql).bindparams(bindparam("statuses", expanding=True))
        with transaction(self.engine) as connection:
            found = connection.execute(statement, {"after_id": after_id, "statuses": list(statuses)}).scalar()
        return None if found is None else int(found)

    def binlog(self) -> ServerBinlog:
        """The server's binlog as it is now."""
        with transaction(self.engine) as connection:
            return server_binlog(connection)


class ThrowawayTopic:
    """A topic of its own whose records are counted."""

    def __init__(self, settings: KafkaSettings, partitions: int) -> None:
        """Makes nothing yet: ``create`` does. Raises ConfigurationError for properties that librdkafka refuses."""
        self.name = f"{TOPIC_PREFIX}{uuid.uuid4().hex[:8]}"
        self.partitions = partitions
        self._servers = settings.bootstrap_servers
        try:
            properties = settings.client_properties(client_id="cdc-relay-bench")
            self._admin = AdminClient(known_to("admin", properties) | {"log_level": 0})
        except KafkaException as error:
            raise ConfigurationError(f"kafka.properties: {error.args[0].str()}") from error
        self._before = 0
        self._may_exist = False

    def create(self) -> None:
        """Make it, as durable as the cluster makes topics. Raises KafkaError."""
        try:
            self._admin.list_topics(timeout=_KAFKA_ANSWER_S)
        except KafkaException as error:
            raise KafkaUnavailable(
                f"no Kafka broker answers at {self._servers}: {error.args[0].str()}",
                hint="check kafka.bootstrap_servers; `cdc-relay check` says more",
            ) from error
        self._may_exist = True
        wanted = NewTopic(self.name, self.partitions)
        try:
            self._admin.create_topics([wanted], operation_timeout=_KAFKA_CHANGE_S)[self.name].result(_KAFKA_CHANGE_S)
        except KafkaException as error:
            # Below zero are the client's own: the broker may have done it all the same.
            code = error.args[0].code()
            self._may_exist = code < 0 or code == ErrorCode.REQUEST_TIMED_OUT
            raise KafkaError(
                f"the topic {self.name} cannot be made: {error.args[0].str()}",
                hint=f"this client must be allowed to create, write, read and delete topics {TOPIC_PREFIX}*",
            ) from error
        self.mark()

    def drop(self) -> None:
        """Remove it; no error when it is not there. Raises KafkaError."""
        if not self._may_exist:
            return
        deleted = self._admin.delete_topics([self.name], operation_timeout=_KAFKA_CHANGE_S)[self.name]
        try:
            deleted.result(_KAFKA_CHANGE_S)
        except KafkaException as error:
            if error.args[0].code() != ErrorCode.UNKNOWN_TOPIC_OR_PART:
                raise KafkaError(f"the topic {self.name} cannot be deleted: {error.args[0].str()}") from error

    def mark(self) -> None:
        """Count from here on."""
        self._before = sum(self.ends().values())

    def records(self) -> int:
        """How many records have come since ``mark``."""
        return sum(self.ends().values()) - self._before

    def ends(self) -> dict[int, int]:
        """Where each partition ends; waits while a partition has no leader. Raises KafkaError."""
        latest = OffsetSpec.latest()  # type: ignore[no-untyped-call]
        wanted = {TopicPartition(self.name, n): latest for n in range(self.partitions)}
        deadline = time.monotonic() + _KAFKA_CHANGE_S
        while True:
            try:
                told = self._admin.list_offsets(wanted, request_timeout=_KAFKA_ANSWER_S)
                return {partition.partition: int(each.result().offset) for partition, each in told.items()}
            except KafkaException as error:
                if error.args[0].code() in _REFUSALS or time.monotonic() > deadline:
                    raise KafkaError(f"Kafka does not tell of {self.name}: {error.args[0].str()}") from error
            time.sleep(_LOOK_S)
            self._ask_for_leaders()

    def _ask_for_leaders(self) -> None:
        """Or the client would believe for long what it heard when the topic was new."""
        try:
            self._admin.list_topics(self.name, timeout=_KAFKA_ANSWER_S)
        except KafkaException:
            pass  # the next question tells


@contextmanager
def existing(*things: ThrowawayOutbox | ThrowawayTopic) -> Iterator[None]:
    """Make them; remove every one of them at the end, also when one of them could not be made or removed."""
    with ExitStack() as stack:
        for each in things:
            stack.callback(each.drop)  # first: a signal may come while it is made
            each.create()
        yield
