"""What one sees of the demo: live bars on a terminal, a plain line every two seconds elsewhere, and the verdict."""

from __future__ import annotations

import time
from collections.abc import Mapping
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.text import Text

from cdc_relay.demo.verdict import Verdict

_LINE_EVERY_S = 2.0
_STEPS = ("inserted", "published", "consumed")


class Display:
    """Shows progress from entering the context to leaving it."""

    def __init__(self, console: Console, rows: int) -> None:
        self._console = console
        self._began = time.monotonic()
        self._said_at = self._began
        self._progress: Progress | None = None
        if console.is_terminal:
            self._progress = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=24),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TextColumn("{task.fields[note]}"),
                console=console,
            )
            self._tasks = {step: self._progress.add_task(f"{step:9}", total=rows, note="") for step in _STEPS}

    def __enter__(self) -> Self:
        if self._progress is not None:
            self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._progress is not None:
            self._progress.stop()

    def update(self, counts: Mapping[str, int], latency_ms: Mapping[str, float | None], *, last: bool = False) -> None:
        """Show ``counts`` by step; every two seconds where there is no terminal, and when it is the ``last``."""
        if self._progress is not None:
            note = f"p50 {_ms(latency_ms, 'p50')} p99 {_ms(latency_ms, 'p99')} ms"
            for step, task in self._tasks.items():
                self._progress.update(task, completed=counts[step], note=note if step == "published" else "")
            return
        now = time.monotonic()
        if last or now - self._said_at >= _LINE_EVERY_S:
            self._said_at = now
            steps = "  ".join(f"{step} {counts[step]:,}" for step in _STEPS)
            say(self._console, f"{now - self._began:5.1f} s  {steps}  {_latency(latency_ms)}")


def say(console: Console, line: str, style: str = "") -> None:
    """Print a line as it is: no markup, no wrapping, no highlighting of numbers."""
    console.print(Text(line, style=style), soft_wrap=True)


def show_verdict(console: Console, verdict: Verdict, *, seconds: float, rolled_back: int) -> None:
    """The summary for people."""
    say(console, "")
    for count, words in (
        (verdict.inserted, f"committed by the application ({rolled_back:,} more rows were rolled back)"),
        (verdict.published, "of these, read back from Kafka"),
        (verdict.consumed, "of these, marked consumed"),
        (verdict.lost, "lost"),
        (verdict.duplicates_applied, "applied to the chat history more than once"),
        (verdict.out_of_order, "out of the order of their conversation"),
        (verdict.invented, "found somewhere though never committed"),
        (verdict.wrong_counts, "conversations with a wrong message_count"),
        (verdict.redelivered, "second copies in Kafka (allowed: delivery is at least once)"),
    ):
        say(console, f"{count:>10,}  {words}")
    say(console, f"            {_latency(verdict.latency_ms)}, from COMMIT's return to an independent reader")
    rate = verdict.consumed / seconds if seconds else 0.0
    say(console, f"            {seconds:.1f} s, {rate:,.0f} rows a second from the first INSERT to the last UPDATE")
    say(console, "")
    if verdict.is_good:
        say(console, "Verdict: nothing lost, nothing doubled, nothing out of order.", "bold green")
    else:
        say(console, "Verdict: FAILED, see the counts above.", "bold red")


def _latency(latency_ms: Mapping[str, float | None]) -> str:
    return f"commit→Kafka p50 {_ms(latency_ms, 'p50')} ms, p99 {_ms(latency_ms, 'p99')} ms"


def _ms(latency_ms: Mapping[str, float | None], name: str) -> str:
    value = latency_ms.get(name)
    return "–" if value is None else f"{value:.1f}"
