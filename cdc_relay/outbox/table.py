"""The tables as SQLAlchemy Core sees them, and what ``init-db`` creates.

The outbox belongs to the application: an existing one is never altered, may have more columns, wider ones, or the same
in another order. Only the names in ``OUTBOX_COLUMNS`` are relied on.
"""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, Index, Integer, MetaData, String, Table, Text, text
from sqlalchemy.dialects import mysql
from sqlalchemy.dialects.mysql import DATETIME, LONGTEXT
from sqlalchemy.schema import CreateColumn

DEFAULT_TABLE = "agent_outbox_messages"

DEFAULT_MAX_RETRY = 20

OUTBOX_COLUMNS = (
    "id",
    "biz_type",
    "topic",
    "message_key",
    "payload",
    "status",
    "retry_count",
    "max_retry",
    "next_retry_at",
    "last_error",
    "published_at",
    "consumed_at",
    "created_at",
    "updated_at",
)
"""Every column that the relay or the consumer reads or writes."""


def outbox_table(name: str = DEFAULT_TABLE, metadata: MetaData | None = None) -> Table:
    """The outbox table called ``name``, as ``init-db`` creates it."""
    return Table(
        name,
        metadata if metadata is not None else MetaData(),
        Column("id", BigInteger, primary_key=True, autoincrement=True),
        Column("biz_type", String(64), nullable=False),
        Column("topic", String(128), nullable=False),
        Column("message_key", String(128), nullable=False, server_default=""),
        Column("payload", LONGTEXT, nullable=False),
        Column("status", String(32), nullable=False, server_default="pending"),
        Column("retry_count", Integer, nullable=False, server_default=text("0")),
        Column("max_retry", Integer, nullable=False, server_default=text(str(DEFAULT_MAX_RETRY))),
        Column("next_retry_at", DATETIME(fsp=6)),
        Column("last_error", Text),
        Column("published_at", DATETIME(fsp=6)),
        Column("consumed_at", DATETIME(fsp=6)),
        Column("created_at", DATETIME(fsp=6)),
        Column("updated_at", DATETIME(fsp=6)),
        Index("idx_outbox_status_next", "status", "next_retry_at", "biz_type"),
        mysql_engine="InnoDB",
        mysql_charset="utf8mb4",
    )


def contract_column(name: str) -> str:
    """The definition of a column of the outbox table, as it stands in SQL."""
    return str(CreateColumn(outbox_table().columns[name]).compile(dialect=mysql.dialect()))


def chat_tables(metadata: MetaData | None = None) -> tuple[Table, Table]:
    """``chat_histories`` and ``agent_chats``, which the handler of ``chat_history_persist`` writes."""
    metadata = metadata if metadata is not None else MetaData()
    histories = Table(
        "chat_histories",
        metadata,
        Column("id", BigInteger, primary_key=True, autoincrement=True),
        Column("chat_id", String(36), nullable=False),
        Column("user_id", Integer, nullable=False),
        Column("message_content", Text(16_777_215), nullable=False),  # MEDIUMTEXT: TEXT ends at 64 KiB
        Column("role", String(32), nullable=False),
        Column("tokens_consumed", Integer, nullable=False, server_default=text("0")),
        Column("created_at", DATETIME(fsp=6)),
        Index("idx_chat_histories_chat", "chat_id", "id"),
        mysql_engine="InnoDB",
        mysql_charset="utf8mb4",
    )
    chats = Table(
        "agent_chats",
        metadata,
        Column("id", BigInteger, primary_key=True, autoincrement=True),
        Column("chat_id", String(36), nullable=False, unique=True),
        Column("user_id", Integer, nullable=False),
        Column("title", String(255), nullable=False, server_default=""),
        Column("system_prompt", Text),
        Column("model", String(64), nullable=False, server_default=""),
        Column("message_count", Integer, nullable=False, server_default=text("0")),
        Column("tokens_total", BigInteger, nullable=False, server_default=text("0")),
        Column("last_message_at", DATETIME(fsp=6)),
        Column("status", String(32), nullable=False, server_default="active"),
        Column("created_at", DATETIME(fsp=6)),
        Column("updated_at", DATETIME(fsp=6)),
        Column("deleted_at", DATETIME(fsp=6)),
        Index("idx_agent_chats_user", "user_id"),
        mysql_engine="InnoDB",
        mysql_charset="utf8mb4",
    )
    return histories, chats
