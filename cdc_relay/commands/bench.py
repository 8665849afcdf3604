"""``bench``: what the relay does on one's own servers."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Event
from types import FrameType
from typing import TYPE_CHECKING, Annotated

import typer

from cdc_relay.commands import options
from cdc_relay.commands.output import as_json, show_table

if TYPE_CHECKING:
    from cdc_relay.bench.run import Report


def add_to(app: typer.Typer) -> None:
    """Give ``app`` this command."""
    app.command()(bench)


def bench(
    rows: Annotated[int, typer.Option(min=0, help="Rows of a catch-up; 0: measure latency only.")] = 100_000,
    rows_each: Annotated[int, typer.Option(min=1, help="Of these, rows of a transaction.")] = 1,
    rate: Annotated[
        list[int] | None,
        typer.Option(min=0, help="Rows a second at which latency is measured (1000); repeatable; 0: do not."),
    ] = None,
    seconds: Annotated[float, typer.Option(min=3, help="Seconds of each rate, after two of warming up.")] = 10.0,
    repeat: Annotated[int, typer.Option(min=1, help="Runs of each; then the spread is shown too.")] = 1,
    payload_bytes: Annotated[int, typer.Option(min=200, max=1_000_000, help="Of a row; catch-ups vary it.")] = 600,
    writers: Annotated[
        int, typer.Option(min=1, max=64, help="Connections that commit at the rate; more where a commit takes long.")
    ] = 4,
    partitions: Annotated[int, typer.Option(min=1, max=1_000, help="Of the topic.")] = 6,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    config: options.ConfigFile = None,
    database_url: options.DatabaseUrl = None,
    bootstrap_servers: options.BootstrapServers = None,
    json: options.AsJson = False,
    debug: options.Debug = False,
) -> None:
    """Measure the relay on your own MySQL and Kafka: how fast it catches up, what a row costs, how soon it arrives.

    Run it where the relay would run, with the relay's settings. It makes a database cdc_relay_bench_… and a topic
    cdc-relay-bench-… and drops both at the end, also after Ctrl-C; no other table or topic is touched. Both servers do
    real work meanwhile, and replicas follow what is written: it asks first, and is not for a server at its limit.

    Catch-up: rows are committed, then a relay starts behind them. Throughput is that of Kafka's end of the topic; the
    processor time is that of the relay's process. Latency: from when a writer knows of its commit until an independent
    consumer has the record. Both once with writeback.mode = none and once with status: the difference is what it costs
    to mark rows in the table.

    The account must be allowed to make the database, beside what the relay needs:
    GRANT ALL ON `cdc\\_relay\\_bench\\_%`.* TO it. The client of Kafka must be allowed to create and delete the topic.

    \b
    Examples:
        cdc-relay bench --config relay.toml
        cdc-relay bench --config relay.toml --rows 300000 --rate 200 --rate 5000 --repeat 5
        cdc-relay bench --yes --json | jq '.figures[] | select(.metric == "p99")'

    With --json stdout has one object: facts (the machine, versions, settings of MySQL) and figures, each with all its
    runs. Progress goes to stderr. Only kill -9 leaves the database and the topic behind; they are named at the start.

    \b
    Exit codes: 0 measured, 1 not agreed to, or the relay ended or stood still, 2 a setting or an argument, 3 MySQL,
    4 Kafka, 5 not on Linux, 130 Ctrl-C or SIGTERM.
    """
    settings = options.load_settings(config, database__url=database_url, kafka__bootstrap_servers=bootstrap_servers)
    from cdc_relay.bench.run import Bench, Choices

    rates = tuple(each for each in (rate or [1_000]) if each)
    if not rows and not rates:
        raise typer.BadParameter("nothing is left to measure with --rows 0 and --rate 0", param_hint="--rate")
    planned = Bench(settings, Choices(rows, rows_each, rates, seconds, repeat, payload_bytes, writers, partitions))
    typer.echo(planned.plan, err=True)
    if not yes:
        if not sys.stdin.isatty():
            raise typer.BadParameter("must be given where nobody can be asked", param_hint="--yes")
        typer.confirm("Go ahead?", abort=True, err=True)
    with _interruptible() as require_no_interrupt:
        planned.run(
            lambda words: typer.echo(f"bench: {words}", err=True),
            (lambda report: typer.echo(as_json(report.plain()))) if json else _show,
            require_no_interrupt,
        )


def _show(report: Report) -> None:
    lines: dict[tuple[str, str], dict[str, str]] = {}
    for each in report.figures:
        line = f"{each.scenario}, {each.case}", f"{each.metric}, {each.unit}"
        lines.setdefault(line, {})[each.variant] = each.spread
    told = ""
    rows = []
    for (what, metric), by_mode in lines.items():
        rows.append(("" if what == told else what, metric, by_mode.get("none", ""), by_mode.get("status", "")))
        told = what
    facts = report.facts
    show_table(
        f"cdc-relay {facts['cdc-relay']} with MySQL {facts['mysql']} on {facts['machine']}",
        ["", "writeback.mode", ">none", ">status"],
        rows,
    )


@contextmanager
def _interruptible() -> Iterator[Callable[[], None]]:
    """A function that raises KeyboardInterrupt after SIGINT or SIGTERM.

    Not the handler itself: within librdkafka's calls that would do harm, and in the dropping it would leave things.
    """
    interrupted = Event()

    def on_signal(_: int, __: FrameType | None) -> None:
        interrupted.set()
        # Not by print: buffered streams may not be re-entered.
        os.write(sys.stderr.fileno(), b"bench: interrupted; dropping the database and the topic, one moment\n")

    def require_no_interrupt() -> None:
        if interrupted.is_set():
            raise KeyboardInterrupt

    before = {number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield require_no_interrupt
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
