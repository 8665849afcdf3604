"""``demo``: the whole way on servers of its own."""

from __future__ import annotations

from typing import Annotated

import typer

from cdc_relay.commands import options
from cdc_relay.embedded.cli import KafkaKind, MysqlFlavour


def add_to(app: typer.Typer) -> None:
    """Give ``app`` this command."""
    app.command()(demo)


def demo(
    rows: Annotated[int, typer.Option(min=1, help="Messages to commit.")] = 10_000,
    conversations: Annotated[int, typer.Option(min=1, help="Conversations that they belong to.")] = 200,
    kafka: Annotated[
        KafkaKind, typer.Option(help="embedded: librdkafka's mock broker, at once. real: Apache Kafka; needs Java.")
    ] = KafkaKind.embedded,
    mysql: Annotated[
        MysqlFlavour, typer.Option(help="auto: whichever is on PATH, else MySQL is fetched.")
    ] = MysqlFlavour.auto,
    rate: Annotated[
        float, typer.Option(min=0, help="Rows a second that the application commits; 0: as many as it can.")
    ] = 1_000,
    json: Annotated[bool, typer.Option("--json", help="Print the verdict as one JSON object, on one line.")] = False,
    debug: options.Debug = False,
) -> None:
    """Show the main job end to end: an application inserts, the relay publishes, the consumer applies.

    Starts a throwaway MySQL and Kafka, both programs, and an application whose writers commit conversations and roll
    some back. Then it compares what was committed with what is in Kafka, read by an independent consumer, and in the
    chat history. Nothing of it is left afterwards.

    \b
    Examples:
        cdc-relay demo
        cdc-relay demo --kafka real --rows 100000 --rate 0
        cdc-relay demo --json | tail -1 | jq .latency_ms

    With --json progress goes to stderr and stdout has one object: inserted, published, consumed, lost,
    duplicates_applied, out_of_order, invented, latency_ms {p50, p99, max} and more.

    \b
    Exit codes: 0 nothing lost, doubled or out of order; 1 something was, or a program ended;
    5 a program is missing on this machine and could not be fetched.
    """
    from rich.console import Console

    from cdc_relay.demo.round import Choices, play

    outcome = play(Choices(rows, conversations, kafka.value, mysql.value, rate), Console(stderr=json, highlight=False))
    if json:
        from json import dumps

        typer.echo(dumps(outcome.plain(), ensure_ascii=False))
    if not outcome.is_good:
        raise typer.Exit(1)
