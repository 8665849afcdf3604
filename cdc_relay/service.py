"""The composition root of the relay: builds everything from Settings and keeps it running.

Read it for what belongs to what; the data paths are ``tailer.py`` and ``sweeper.py``, the threads are ``session.py``.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from threading import Event

from cdc_relay.acknowledged import AcknowledgedFile
from cdc_relay.admin.server import AdminServer, Health
from cdc_relay.binlog.opening import BinlogOpener
from cdc_relay.binlog.server import server_binlog
from cdc_relay.checkpoint import Checkpointer, FileCheckpointStore
from cdc_relay.config import RELAY_ADMIN_PORT, Settings
from cdc_relay.errors import CheckpointError, DatabaseError, ProducerFatal, RelayError, StaleSource
from cdc_relay.fresh_rows import TailProgress
from cdc_relay.kafka.properties import BATCH_BYTES
from cdc_relay.kafka.publisher import KafkaPublisher
from cdc_relay.lease import Leadership, lock_names
from cdc_relay.logs import get_logger
from cdc_relay.metrics import RelayMetrics, process_registry
from cdc_relay.outbox.backoff import Backoff
from cdc_relay.outbox.clock import DatabaseClock
from cdc_relay.outbox.database import closing_engine, make_engine, transaction
from cdc_relay.outbox.statements import OutboxStatements
from cdc_relay.parking import SharedParking
from cdc_relay.preflight.start import require
from cdc_relay.reconcile import ServerBinlog, Start, decide_start, load_start
from cdc_relay.row_image import log_changes_only
from cdc_relay.sent_rows import SentRows
from cdc_relay.session import Parts, Session
from cdc_relay.sweeper import SweepCounts
from cdc_relay.writeback import StatusWriter

log = get_logger(__name__)

#: Between sessions that failed: from a fifth of a second up to five, which is what the end of an outage may cost.
_SESSION_BACKOFF = Backoff(base_s=0.2, cap_s=5.0)

#: A session that lasted so long has made progress; its end begins the backoff anew.
_LASTING_S = 30.0

#: How long a start waits for a first answer of MySQL and of Kafka; later, outages are waited out.
_ANSWER_AT_START_S = 10.0

#: The tailer is in trouble when it has heard nothing for so many read timeouts.
_UNHEALTHY_TIMEOUTS = 3


class RelayService:
    """Tailer and sweep (or one of them) of one relay, with its admin server."""

    def __init__(
        self,
        settings: Settings,
        publisher: KafkaPublisher | None = None,
        *,
        tail: bool,
        sweep: bool,
        drain_timeout_s: float = 30.0,
    ) -> None:
        """``publisher`` is one that has begun to connect already; the others are made here as they are needed."""
        self._settings = settings
        self._tail = tail
        self._sweep = sweep
        self._drain_timeout_s = drain_timeout_s
        self._engine = make_engine(settings.database, pool_size=5)
        if settings.writeback.row_image == "minimal":
            log_changes_only(self._engine, "writeback.row_image")
        self._leadership = Leadership(self._engine, lock_names(settings.name, tail=tail, sweep=sweep))
        self._registry = process_registry()
        self._metrics = RelayMetrics(self._registry)
        self._store = FileCheckpointStore(settings.checkpoint.path)
        self._opener = BinlogOpener(settings, self._engine, self._metrics)
        self._reader = self._opener.reader
        if tail:
            self._metrics.binlog_reader.info({"relay": settings.name, **self._reader._asdict()})
        self._publisher = publisher
        self._batch_bytes = BATCH_BYTES
        self._session: Session | None = None
        self._role = "starting"
        statements = OutboxStatements(settings.database.table)
        parking = SharedParking(settings.ordering.rule)
        self._parts = Parts(
            settings=settings,
            transaction=lambda: self._leadership.transaction(self._engine),
            clock=DatabaseClock(),
            statements=statements,
            parking=parking,
            writer=StatusWriter(
                lambda: self._leadership.transaction(self._engine),
                statements,
                parking,
                self._metrics,
                zone=settings.database.zone,
                backoff=Backoff(settings.retry.base_s, settings.retry.cap_s),
                batch_rows=settings.writeback.batch_rows,
                marks_tailed=settings.writeback.mode != "none",
                delay_s=settings.writeback.delay_ms / 1000 if settings.writeback.mode == "lazy" else 0.0,
            ),
            checkpointer=Checkpointer(self._store, settings.checkpoint.interval_s, self._leadership.check),
            acknowledged=AcknowledgedFile.beside(settings.checkpoint.path),
            sent_rows=SentRows.beside(settings.checkpoint.path, settings.tail.max_in_flight_rows),
            metrics=self._metrics,
        )

    def run(self, stop: Event) -> None:
        """Work until ``stop``. Raises RelayError for what the operator must mend, at start or later."""
        if self._tail and self._reader.reader == "library" and self._settings.tail.reader == "auto":
            log.warning(
                f"{self._reader.why}; the binlog is read by the library reader, which needs more of the processor",
                action="reader_fallback",
            )
        with closing_engine(self._engine), self._admin():
            self._require(stop)
            failures = 0
            distrust: str | None = None
            while not stop.is_set():
                began = time.monotonic()
                try:
                    self._work(stop, distrust)
                except RelayError as error:
                    if isinstance(error, StaleSource):
                        if distrust is None:
                            failures = 0  # the table helps at once; only the same again is a failure
                        distrust = error.reason
                    elif not error.retriable:
                        raise
                    elif self._session is not None and self._session.caught_up:
                        distrust = None
                    if isinstance(error, ProducerFatal):
                        self._metrics.reconnects.labels(target="kafka").inc()
                    failures = 1 if time.monotonic() - began > _LASTING_S else failures + 1
                    wait_s = _SESSION_BACKOFF.delay_s(failures) * random.uniform(0.5, 1.0)
                    log.warning(
                        f"{error}; trying again in {wait_s:.1f} s, nothing is lost meanwhile",
                        action="session_failed",
                        failures=failures,
                    )
                    stop.wait(wait_s)
                finally:
                    self._retire()
            log.info("stopped", action="stopped")

    @property
    def is_tailing(self) -> bool:
        """Whether this relay is the active one and follows the binlog, having caught up from the table if need be."""
        session = self._session
        return self._role == "active" and session is not None and session.is_tailing

    def sweep_once(self, stop: Event) -> SweepCounts:
        """Sweep until nothing more is due, or until ``stop``; what was done, and what was left at the end.

        Waits neither for an outage to end nor for the lock. Raises RelayError.
        """
        sent = 0
        last = SweepCounts()

        def on_swept(counts: SweepCounts) -> None:
            nonlocal sent, last
            sent, last = sent + counts.sent, counts
            if not counts.more:
                stop.set()

        self._require(stop)
        try:
            if not self._leadership.acquire(wait_s=0):
                raise DatabaseError(
                    f"another relay named {self._settings.name!r} sweeps already",
                    hint="it sends what is due by itself; `cdc-relay status` tells which connection it is",
                )
            self._lead(stop, None, on_swept)
        finally:
            self._retire()
        return replace(last, sent=sent)

    def _require(self, stop: Event) -> None:
        """Raise what the operator must mend before anything can work."""
        require(self._engine, self._settings.database, patience_s=_ANSWER_AT_START_S, stop=stop)
        self._ready_publisher().require_broker(_ANSWER_AT_START_S)

    def _work(self, stop: Event, distrust: str | None) -> None:
        """One session, from waiting for the lock to its end."""
        if self._become_active(stop):
            self._lead(stop, distrust)

    def _lead(
        self, stop: Event, distrust: str | None, on_swept: Callable[[SweepCounts], None] = lambda _: None
    ) -> None:
        """One session as the active relay."""
        publisher = self._ready_publisher()
        while not self._parts.writer.idle:  # what Kafka acknowledged before the last session ended
            self._parts.writer.run_once(self._parts.clock(), at_once=True)
        self._parts.writer.forget_late()
        with transaction(self._engine) as connection:
            binlog = server_binlog(connection)
            self._parts.clock.set(lambda: self._parts.statements.database_now(connection))
        start = self._start(binlog, distrust)
        self._session = Session(
            self._parts,
            publisher,
            binlog,
            start,
            (lambda stopping: self._opener.open(binlog, start, stopping)) if self._tail else None,
            sweep=self._sweep,
            other_tailer=lambda: self._other_tailer(binlog),
            on_swept=on_swept,
        )
        self._role = "active"
        self._session.run(stop, self._drain_timeout_s)

    def _become_active(self, stop: Event) -> bool:
        """Wait for the lock as a hot standby; False when stopped meanwhile."""
        waiting = False
        while not stop.is_set():
            if self._leadership.acquire(wait_s=1 if waiting else 0):
                self._metrics.leader.set(1)
                log.info("this relay is the active one", action="active", name=self._settings.name)
                return True
            if not waiting:
                waiting = True
                self._role = "standby"
                log.info(
                    f"another relay named {self._settings.name!r} is active; waiting as its standby",
                    action="standby",
                    holder_connection_id=self._leadership.holder(),
                )
        return False

    def _start(self, binlog: ServerBinlog, distrust: str | None) -> Start:
        last = self._parts.checkpointer.last
        jump = self._settings.tail.jump_behind_bytes
        if last is not None:
            start = decide_start(last, binlog, jump_behind_bytes=jump, distrust=distrust)
        else:
            start = load_start(self._store, binlog, jump_behind_bytes=jump, distrust=distrust)
        if not self._tail:
            return start
        start = start.knowing(self._parts.acknowledged.load(), binlog)
        if start.reconcile is None:
            log.info(
                f"tailing from the checkpoint {start.position}",
                action="start",
                position=str(start.position),
                acknowledged=str(start.acknowledged or start.position),
                reader=self._reader.reader,
            )
        else:
            self._metrics.reconciles.labels(reason=start.reconcile).inc()
            log.info(
                f"catching up from the table, then tailing from {start.position}: {start.detail}",
                action="reconcile",
                reason=start.reconcile,
                position=str(start.position),
                reader=self._reader.reader,
            )
        return start

    def _other_tailer(self, binlog: ServerBinlog) -> TailProgress:
        """The tailer of another process, by its checkpoint file."""
        try:
            checkpoint = self._store.load()
        except CheckpointError:
            checkpoint = None
        if checkpoint is None or checkpoint.server != binlog.server:
            return TailProgress(None, stalled=True)
        silent_s = time.time() - checkpoint.written_at
        return TailProgress(checkpoint.position, stalled=silent_s > self._settings.sweep.takeover_after_s)

    def _ready_publisher(self) -> KafkaPublisher:
        if self._publisher is None:
            self._publisher = KafkaPublisher(self._settings.kafka, batch_bytes=self._batch_bytes)
        return self._publisher

    def _retire(self) -> None:
        """End what must not outlive a session: the lock, and a producer that still holds records."""
        self._leadership.close()
        self._session = None
        self._metrics.leader.set(0)
        self._role = "starting"
        publisher = self._publisher
        if publisher is not None and (publisher.failed or publisher.in_flight):
            if publisher.in_flight:
                log.warning(
                    "records are given up before Kafka answered; their rows stay pending and are sent again",
                    action="given_up",
                    records=publisher.in_flight,
                )
            publisher.close()
            self._batch_bytes = publisher.batch_bytes
            self._parts.writer.forget_given_up()
            self._publisher = None

    # --- admin -----------------------------------------------------------------------------------------------------

    def _admin(self) -> AdminServer:
        return AdminServer(
            self._settings.admin,
            program="cdc-relay",
            default_port=RELAY_ADMIN_PORT,
            registry=self._registry,
            health=self._health,
            ready=self._ready,
            state=self._state,
        )

    def _health(self) -> Health:
        session = self._session
        silent_s = session.silent_s if session is not None and self._role == "active" else 0.0
        limit_s = _UNHEALTHY_TIMEOUTS * self._settings.tail.read_timeout_s
        alive = silent_s <= limit_s
        return Health(alive, {"tail": "ok" if alive else f"silent for {silent_s:.0f} s"})

    def _ready(self) -> Health:
        checks = {"role": self._role}
        publisher = self._publisher
        if publisher is not None and publisher.brokers_down:
            checks["kafka"] = "no broker can be reached"
        return Health(self._role in ("active", "standby") and "kafka" not in checks, checks)

    def _state(self) -> Mapping[str, object]:
        session = self._session
        state: dict[str, object] = {"name": self._settings.name, "role": self._role}
        if session is not None:
            state |= {
                "reader": f"{self._reader.reader}: {self._reader.why}",
                "position": str(session.watermark.position),
                "rows in flight": session.watermark.in_flight_rows,
                "keys held back": self._parts.parking.keys,
                "keys held back by a dead row": self._parts.parking.blocked_keys,
            }
        return state
