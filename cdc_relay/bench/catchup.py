"""Catch-up: a filled outbox, a relay that starts behind it, and how fast its rows come to Kafka."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from cdc_relay.bench.figures import metric
from cdc_relay.bench.place import ThrowawayOutbox, ThrowawayTopic
from cdc_relay.bench.relay import MeasurementFailed, RelayProcess, Variant, checkpoint_at
from cdc_relay.bench.settings import altered
from cdc_relay.reconcile import bytes_between

#: Each look costs the broker a request, so there are fewer of them the longer it will still take.
_LOOK_S = 0.01
_LOOK_RARELY_S = 0.1
_LOOK_AT_TABLE_S = 0.1
#: Without any progress for so long, something is wrong.
_PATIENCE_S = 120.0


@dataclass(frozen=True)
class CatchUp:
    """What one run showed. Its beginning is the last look at the topic that saw nothing of it, at most 20 ms early."""

    rows_per_s: float = metric("throughput", "rows/s")
    """To Kafka, from the first record to the last."""
    cpu_us: float = metric("processor time", "µs/row")
    """The relay's processor time for a row, all its threads, user and system, the marking of rows included."""
    first_s: float = metric("start to first record", "s")
    """From the start of the process."""
    all_s: float = metric("start to last record", "s")
    peak_mib: float = metric("peak memory", "MiB")
    marked_per_s: float | None = metric("throughput to marked rows", "rows/s")
    """From the first record to the last row that is marked; None where rows are not marked."""


class Follower(Protocol):
    """A running program that sends the rows; what ``RelayProcess`` says of each."""

    started_at: float

    def cpu_s(self) -> float: ...
    def peak_mib(self) -> float: ...
    def require_alive(self) -> None: ...
    def said(self) -> str: ...


class FilledOutbox:
    """Rows that are committed behind a known position, for a topic."""

    def __init__(
        self,
        outbox: ThrowawayOutbox,
        topic: ThrowawayTopic,
        *,
        rows: int,
        fill: Callable[[], None],
        on_wait: Callable[[], None] = lambda: None,
    ) -> None:
        """``fill`` commits ``rows`` rows; what else it writes is read over by the relay.

        ``on_wait`` is called again and again during a run; what it raises ends the run.
        """
        self.outbox = outbox
        self.topic = topic
        self.rows = rows
        self._fill = fill
        self._on_wait = on_wait
        self._commit()

    def again(self) -> None:
        """Commit as many rows anew, in place of those that are there."""
        self.outbox.clear()
        self._commit()

    def _commit(self) -> None:
        before = self.outbox.binlog()
        self._fill()
        self.checkpoint = checkpoint_at(before.server, before.head)
        self.binlog_bytes = bytes_between(before.head, self.outbox.binlog())
        self.marked = False
        """Whether a run has marked rows. The next one would read over what marked them, and it would count."""

    def run(self, variant: Variant, *, from_table: bool = False) -> CatchUp:
        """One relay from the position before the rows until all have come, and are marked if it marks them.

        ``from_table``: without a checkpoint. Raises MeasurementFailed and what the place raises.
        """
        self.topic.mark()
        # However far behind, it is to tail.
        relay = RelayProcess(variant, altered(self.outbox.settings, {"tail.jump_behind_bytes": 0}))
        try:
            relay.start(None if from_table else self.checkpoint)
            marks = from_table or relay.settings.writeback.mode != "none"
            self.marked = self.marked or marks
            found = self.watch(relay, marks=marks)
            relay.stop()
            return found
        finally:
            relay.close()

    def watch(self, relay: Follower, *, marks: bool) -> CatchUp:
        """What a relay does that was just started, until all rows have come; ``marks``: and until all are marked.

        The topic was marked before. Raises MeasurementFailed and what the place raises.
        """
        begun_at, begun_cpu = time.perf_counter(), 0.0
        first_at = 0.0
        there, moved_at = 0, begun_at
        while there < self.rows:
            time.sleep(_until_next_look(there, self.rows, time.perf_counter() - begun_at))
            looked_at, cpu, before = time.perf_counter(), relay.cpu_s(), there
            there = self.topic.records()
            now = time.perf_counter()
            if not there:
                begun_at, begun_cpu = looked_at, cpu
            elif not first_at:
                first_at = now
            moved_at = now if there != before else moved_at
            self._require_progress(relay, moved_at, f"{there} of {self.rows} records have come")
        last_at, cpu, marked_per_s = now, relay.cpu_s(), None
        if marks:
            first = 1
            while found := self.outbox.first_left(after_id=first - 1):
                moved_at, first = (time.perf_counter() if found != first else moved_at), found
                self._require_progress(relay, moved_at, f"the row {found} and later ones are not marked")
                time.sleep(_LOOK_AT_TABLE_S)
            marked_per_s, cpu = self.rows / (time.perf_counter() - begun_at), relay.cpu_s()
        return CatchUp(
            rows_per_s=self.rows / (last_at - begun_at),
            cpu_us=(cpu - begun_cpu) / self.rows * 1e6,
            first_s=first_at - relay.started_at,
            all_s=last_at - relay.started_at,
            peak_mib=relay.peak_mib(),
            marked_per_s=marked_per_s,
        )

    def _require_progress(self, relay: Follower, moved_at: float, words: str) -> None:
        self._on_wait()
        relay.require_alive()
        if time.perf_counter() - moved_at > _PATIENCE_S:
            raise MeasurementFailed(f"{words}, and nothing has moved for {_PATIENCE_S:g} s:\n{relay.said()}")


def _until_next_look(there: int, rows: int, elapsed_s: float) -> float:
    """Seconds; a quarter of what it will still take if it goes on like this."""
    left_s = elapsed_s * (rows - there) / there if there else 0.0
    return min(max(left_s / 4, _LOOK_S), _LOOK_RARELY_S)
