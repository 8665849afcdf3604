"""``init-db``: the tables of both programs, created where they are missing."""

from __future__ import annotations

from sqlalchemy import MetaData, inspect
from sqlalchemy.dialects import mysql
from sqlalchemy.schema import CreateIndex, CreateTable

from cdc_relay.config import DatabaseSettings
from cdc_relay.outbox.database import make_engine, transaction
from cdc_relay.outbox.table import chat_tables, outbox_table


def create_missing(settings: DatabaseSettings) -> dict[str, bool]:
    """Create what is missing and alter nothing: each table's name, and whether it was created now.

    Raises DatabaseError.
    """
    metadata = _metadata(settings.table)
    engine = make_engine(settings, pool_size=1)
    try:
        with transaction(engine) as connection:
            there = set(inspect(connection).get_table_names())
            metadata.create_all(connection)
    finally:
        engine.dispose()
    return {table.name: table.name not in there for table in metadata.tables.values()}


def sql(outbox: str) -> str:
    """The statements that ``create_missing`` would run on an empty database."""
    dialect = mysql.dialect()
    statements = []
    for table in _metadata(outbox).tables.values():
        statements.append(str(CreateTable(table, if_not_exists=True).compile(dialect=dialect)).strip())
        # sorted: indexes are kept in a set
        for index in sorted(table.indexes, key=lambda index: str(index.name)):
            statements.append(str(CreateIndex(index).compile(dialect=dialect)).strip())
    return "\n".join(line.rstrip() for line in ";\n\n".join(statements).splitlines()) + ";"


def _metadata(outbox: str) -> MetaData:
    metadata = MetaData()
    outbox_table(outbox, metadata)
    chat_tables(metadata)
    return metadata
