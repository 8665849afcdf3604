"""The application's side of a measurement: a filled outbox, and a steady stream of commits."""

from __future__ import annotations

import json
import time
import uuid
from typing import Any

import pymysql
from sqlalchemy import MetaData, create_engine, make_url, text

from cdc_relay.outbox.table import outbox_table

KEYS = 5_000
PAYLOAD_BYTES = 600

#: On the server, so that no client is the bottleneck. Lengths of keys and payloads vary as an application's do.
_FILL = """
CREATE PROCEDURE fill(IN transactions INT, IN rows_each INT, IN topic_name VARCHAR(128))
BEGIN
  DECLARE n INT DEFAULT 0;
  DECLARE m INT;
  DECLARE pad TEXT DEFAULT REPEAT('lorem ipsum dolor ', 60);
  WHILE n < transactions DO
    START TRANSACTION;
    SET m = 0;
    WHILE m < rows_each DO
      INSERT INTO agent_outbox_messages (biz_type, topic, message_key, payload, next_retry_at, created_at, updated_at)
      VALUES ('chat_history_persist', topic_name, CONCAT('conversation-', FLOOR(RAND() * KEYS)),
        CONCAT('{"user_id": ', n % 1000, ', "conversation_id": "c', n % KEYS, '", "role": "user", "message": "',
          LEFT(pad, SIZE - 140 + FLOOR(RAND() * 160)), '"}'),
        UTC_TIMESTAMP(6), UTC_TIMESTAMP(6), UTC_TIMESTAMP(6));
      SET m = m + 1;
    END WHILE;
    COMMIT;
    SET n = n + 1;
  END WHILE;
END
""".replace("KEYS", str(KEYS)).replace("SIZE", str(PAYLOAD_BYTES))


class Outbox:
    """A database of its own with the outbox table in it."""

    def __init__(self, server_url: str, *, tls: bool = False) -> None:
        self._name = f"bench_{uuid.uuid4().hex[:8]}"
        self._server = create_engine(server_url, isolation_level="AUTOCOMMIT")
        with self._server.connect() as connection:
            connection.execute(text(f"CREATE DATABASE {self._name} CHARACTER SET utf8mb4"))
        url = make_url(server_url).set(database=self._name)
        if not tls:  # PyMySQL uses it wherever the server has it
            url = url.update_query_dict({"ssl_disabled": "true"})
        self.url = url.render_as_string(hide_password=False)
        self._engine = create_engine(self.url, isolation_level="AUTOCOMMIT")
        metadata = MetaData()
        outbox_table(metadata=metadata)
        metadata.create_all(self._engine)
        with self._engine.connect() as connection:
            connection.exec_driver_sql(_FILL.replace("%", "%%"))

    def fill(self, topic: str, *, rows: int, rows_each: int) -> None:
        """Commit ``rows`` rows in transactions of ``rows_each``."""
        with self._engine.connect() as connection:
            connection.execute(
                text("CALL fill(:transactions, :each, :topic)"),
                {"transactions": rows // rows_each, "each": rows_each, "topic": topic},
            )

    def fresh_again(self, topic: str) -> None:
        """All rows as they were when they were committed, behind the binlog's back."""
        self.unlogged(
            "UPDATE agent_outbox_messages SET status = 'pending', published_at = NULL, next_retry_at = created_at, "
            "last_error = NULL, retry_count = 0, updated_at = created_at, topic = %s",
            topic,
        )

    def unlogged(self, sql: str, *values: Any) -> None:
        """Run a statement that does not show in the binlog."""
        with self._engine.connect() as connection:
            connection.exec_driver_sql("SET SESSION sql_log_bin = 0")
            connection.exec_driver_sql(sql, values)
            connection.exec_driver_sql("SET SESSION sql_log_bin = 1")

    def pending(self) -> int:
        """How many rows are still to be marked."""
        with self._engine.connect() as connection:
            sql = "SELECT COUNT(*) FROM agent_outbox_messages WHERE status = 'pending'"
            return int(connection.execute(text(sql)).scalar() or 0)

    def drop(self) -> None:
        """Remove the database."""
        self._engine.dispose()
        with self._server.connect() as connection:
            connection.execute(text(f"DROP DATABASE {self._name}"))
        self._server.dispose()


def write_steadily(url: str, topic: str, rows_per_second: float, seconds: float) -> dict[int, float]:
    """Commit one row a transaction at an even pace; when the application knew of each commit, by row id."""
    parsed = make_url(url)
    connection = pymysql.connect(
        host=parsed.host, port=parsed.port or 3306, user=parsed.username, database=parsed.database, autocommit=True
    )
    payload = json.dumps({"user_id": 1, "conversation_id": "c", "role": "user", "message": "x" * (PAYLOAD_BYTES - 80)})
    sql = (
        "INSERT INTO agent_outbox_messages (biz_type, topic, message_key, payload, next_retry_at, created_at) "
        f"VALUES ('chat_history_persist', '{topic}', '%s', '{payload}', UTC_TIMESTAMP(6), UTC_TIMESTAMP(6))"
    )
    committed: dict[int, float] = {}
    begun = time.perf_counter()
    number = 0
    with connection, connection.cursor() as cursor:
        while (elapsed := time.perf_counter() - begun) < seconds:
            due = number / rows_per_second
            if due > elapsed:
                time.sleep(due - elapsed)
            cursor.execute(sql % f"conversation-{number % KEYS}")
            committed[int(cursor.lastrowid)] = time.time()
            number += 1
    return committed
