"""The outbox's binlog, opened for a running relay: which reader, for which table, and again whenever it breaks."""

from __future__ import annotations

import random
from threading import Event

from sqlalchemy import Engine

from cdc_relay.binlog.connection import DumpConnection, choose_reader
from cdc_relay.binlog.position import BinlogPosition
from cdc_relay.binlog.reconnect import ReconnectingSource
from cdc_relay.binlog.rows import DescribedColumn
from cdc_relay.binlog.server import describe_table
from cdc_relay.binlog.source import BinlogSource, LibrarySource
from cdc_relay.binlog.tables import OutboxTables
from cdc_relay.config import Settings
from cdc_relay.logs import OncePerKind, get_logger
from cdc_relay.metrics import RelayMetrics
from cdc_relay.outbox.database import transaction
from cdc_relay.reconcile import ServerBinlog, Start

log = get_logger(__name__)


class BinlogOpener:
    """Opens it as often as sessions begin."""

    def __init__(self, settings: Settings, engine: Engine, metrics: RelayMetrics) -> None:
        """Raises ConfigurationError for a ``tail.reader`` that does not work."""
        self.reader = choose_reader(settings.tail.reader)
        self._settings = settings
        self._engine = engine
        self._metrics = metrics
        self._server_id = settings.tail.server_id or random.randint(2**30, 2**32 - 1)
        self._unsupported_once = OncePerKind(log)

    def open(self, binlog: ServerBinlog, start: Start, stopping: Event) -> ReconnectingSource:
        """From ``start`` on; nothing is connected before it is read. ``stopping`` ends its waiting for the server."""
        settings = self._settings
        schema, table = str(settings.database.parsed.database), settings.database.table
        tables = OutboxTables(schema, table, self._describe, folds_names=binlog.folds_names)

        def open_reader(at: BinlogPosition, file_created_at: int) -> BinlogSource:
            dump = DumpConnection(settings.database, settings.tail, self._server_id, at, binlog.server)
            source = BinlogSource if self.reader.reader == "wire" else LibrarySource
            return source(dump, at, tables, on_unsupported=self._on_unsupported, file_created_at=file_created_at)

        return ReconnectingSource(
            open_reader,
            start.position,
            file_created_at=start.file_created_at,
            stopping=stopping,
            on_reconnect=lambda: self._metrics.reconnects.labels(target="mysql").inc(),
        )

    def _describe(self) -> list[DescribedColumn]:
        with transaction(self._engine) as connection:
            return describe_table(connection, self._settings.database.table)

    def _on_unsupported(self, kind: str) -> None:
        self._metrics.binlog_events_unsupported.labels(kind=kind).inc()
        self._unsupported_once.warning(
            kind,
            "the binlog has something that is not understood; the table is asked for what it holds",
            event_kind=kind,
        )
