"""``cdc-relay bench``: catch-up and latency on the user's own servers, one variant after the other."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from threading import Event
from typing import Any

from cdc_relay.bench.catchup import CatchUp, FilledOutbox
from cdc_relay.bench.figures import Figure, gather
from cdc_relay.bench.latency import WARM_UP_S, Latency, Load, measure
from cdc_relay.bench.machine import machine_facts, server_facts
from cdc_relay.bench.place import ThrowawayOutbox, ThrowawayTopic, existing
from cdc_relay.bench.relay import with_writeback
from cdc_relay.config import Settings
from cdc_relay.outbox.database import transaction
from cdc_relay.preflight.start import require

#: Of a row, beside its payload, in the binlog or in the table with its index; about.
_ROW_BYTES = 600
#: ``none`` first: it leaves the rows as they were, so that ``status`` can have the same ones.
MODES = ("none", "status")


@dataclass(frozen=True, slots=True)
class Choices:
    """What the command line says."""

    rows: int
    rows_each: int
    """Of a transaction."""
    rates: tuple[int, ...]
    """Rows a second of the latencies."""
    seconds: float
    """Of each latency."""
    repeat: int
    payload_bytes: int
    writers: int
    partitions: int


@dataclass(frozen=True, slots=True)
class Report:
    """What came out."""

    facts: dict[str, str]
    figures: list[Figure]

    def plain(self) -> dict[str, Any]:
        """For JSON."""
        return {"facts": self.facts, "figures": [each.plain() for each in self.figures]}


class Bench:
    """Measures; ``outbox`` and ``topic`` exist only meanwhile."""

    def __init__(self, settings: Settings, choices: Choices) -> None:
        """Makes nothing yet. Raises ConfigurationError."""
        self.outbox = ThrowawayOutbox(settings)
        self.topic = ThrowawayTopic(settings.kafka, choices.partitions)
        self._settings = settings
        self._choices = choices

    @property
    def plan(self) -> str:
        """What will be done, to ask whether it may be."""
        choices, url = self._choices, self._settings.database.parsed
        filled = choices.rows * choices.repeat
        steady = int(sum(choices.rates) * (choices.seconds + WARM_UP_S)) * choices.repeat * len(MODES)
        rows, marked, sent = filled + steady, filled + steady // len(MODES), filled * len(MODES) + steady
        # What marks a row writes it twice to the binlog: as it was, and as it is.
        megabytes = (rows * (choices.payload_bytes + _ROW_BYTES) + marked * 2 * choices.payload_bytes) / 1e6
        return "\n".join(
            (
                f"MySQL {url.host}:{url.port or 3306}, as {url.username or 'nobody'}:",
                f"  makes the database {self.outbox.name}, commits {rows:,} rows in it, and drops it at the end;",
                f"  about {megabytes:,.0f} MB of binlog, which replicas follow",
                f"Kafka {self._settings.kafka.bootstrap_servers}:",
                f"  makes the topic {self.topic.name} with {choices.partitions} partitions, writes {sent:,} records",
                "  to it, and deletes it at the end",
                "Nothing else is read or written, but both servers have work to do meanwhile.",
            )
        )

    def run(self, say: Callable[[str], None], show: Callable[[Report], None], on_wait: Callable[[], None]) -> None:
        """Everything that was chosen; ``say`` is told what is being done, ``show`` gets what came out.

        ``on_wait`` is called each second or more often; what it raises ends the measuring. Raises RelayError too.
        Whatever happens, database and topic are gone afterwards, or the error says which is not.
        """
        facts = machine_facts()
        with existing(self.outbox, self.topic):
            require(self.outbox.engine, self.outbox.settings.database, patience_s=10.0, stop=Event())
            with transaction(self.outbox.engine) as connection:
                facts |= server_facts(connection)
            figures = self._catch_up(say, on_wait) if self._choices.rows else []
            for rate in self._choices.rates:
                figures += self._latency(rate, say, on_wait)
            show(Report(facts, figures))  # before anything can go wrong with the dropping
            say("dropping the database and the topic")

    def _catch_up(self, say: Callable[[str], None], on_wait: Callable[[], None]) -> list[Figure]:
        choices = self._choices
        runs: dict[str, list[CatchUp]] = {mode: [] for mode in MODES}
        for turn in range(choices.repeat):
            filled = self._filled(say, on_wait, _turn(turn, choices.repeat))
            for mode in MODES:
                say(f"catching up with them, writeback.mode = {mode}{_turn(turn, choices.repeat)}")
                runs[mode].append(filled.run(with_writeback(mode)))
        a_transaction = f"{choices.rows_each} row{'s' if choices.rows_each > 1 else ''} a transaction"
        case = f"{choices.rows:,} rows, {a_transaction}"
        return [figure for mode in MODES for figure in gather("catch-up", case, mode, runs[mode])]

    def _filled(self, say: Callable[[str], None], on_wait: Callable[[], None], turn: str) -> FilledOutbox:
        choices = self._choices
        self.outbox.clear()
        told = -1

        def on_progress(rows: int) -> None:
            nonlocal told
            on_wait()
            if (tenth := 10 * rows // choices.rows) > told:
                told = tenth
                say(f"committing rows: {rows:,} of {choices.rows:,}{turn}")

        on_progress(0)
        return FilledOutbox(
            self.outbox,
            self.topic,
            rows=choices.rows,
            on_wait=on_wait,
            fill=lambda: self.outbox.fill(
                self.topic.name,
                rows=choices.rows,
                rows_each=choices.rows_each,
                payload_bytes=choices.payload_bytes,
                on_progress=on_progress,
            ),
        )

    def _latency(self, rate: int, say: Callable[[str], None], on_wait: Callable[[], None]) -> list[Figure]:
        choices = self._choices
        load = Load(rate, choices.seconds, choices.writers, choices.payload_bytes)
        runs: dict[str, list[Latency]] = {mode: [] for mode in MODES}
        for turn in range(choices.repeat):
            for mode in MODES:
                seconds = f"{choices.seconds + WARM_UP_S:g} s"
                say(f"latency at {rate:,} rows/s for {seconds}, writeback.mode = {mode}{_turn(turn, choices.repeat)}")
                runs[mode].append(measure(self.outbox, self.topic, with_writeback(mode), load, on_wait=on_wait))
        return [figure for mode in MODES for figure in gather("latency", f"{rate:,} rows/s", mode, runs[mode])]


def _turn(turn: int, of: int) -> str:
    return f" ({turn + 1} of {of})" if of > 1 else ""
