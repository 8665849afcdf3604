"""``cdc-relay stack``: a MySQL and a Kafka of one's own, without Docker and without root."""

from __future__ import annotations

import signal
import sys
import threading
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from cdc_relay.errors import RelayError

if TYPE_CHECKING:
    # What it imports takes a quarter of a second, and every command of cdc-relay loads this module.
    from cdc_relay.embedded import stack

app = typer.Typer(
    name="stack",
    no_args_is_help=True,
    help="""A throwaway MySQL and Kafka on 127.0.0.1, to try cdc-relay without Docker and without root.

The programs on PATH are used when there are any (mysqld 8.0 or later, mariadbd, Java 17 and Maven). \
Otherwise they are fetched once, from the machine's own Debian or Ubuntu archive and from Maven Central, \
into ~/.cache/cdc-relay; nothing is installed. All data is in a temporary folder and gone when the stack ends.

A first round:

    cdc-relay stack up --detach

    eval "$(cdc-relay stack status --export)"

    cdc-relay check

    cdc-relay stack down
""",
)


class MysqlFlavour(StrEnum):
    auto = "auto"
    mysql = "mysql"
    mariadb = "mariadb"


class KafkaKind(StrEnum):
    real = "real"
    embedded = "embedded"


@app.command()
def up(
    detach: Annotated[
        bool, typer.Option("--detach", "-d", help="Return once it serves; 'cdc-relay stack down' ends it.")
    ] = False,
    mysql: Annotated[
        MysqlFlavour, typer.Option(help="auto: whichever is on PATH, else MySQL is fetched.")
    ] = MysqlFlavour.auto,
    kafka: Annotated[
        KafkaKind,
        typer.Option(
            help="real: Apache Kafka, one node. embedded: librdkafka's mock broker, up in milliseconds without Java, "
            "but it keeps only 5 MiB per partition and has no CreateTopics."
        ),
    ] = KafkaKind.real,
    mysql_port: Annotated[int | None, typer.Option(min=1, max=65535, help="Any free one when not given.")] = None,
    kafka_port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="Any free one when not given; only for a real Kafka.")
    ] = None,
) -> None:
    """Start the stack and print how to reach it.

    It runs until Ctrl-C, or in the background with --detach. \
The first time some 150 MB are fetched, step by step; later it takes about two seconds.
    """
    if kafka_port is not None and kafka is KafkaKind.embedded:
        raise typer.BadParameter("the embedded broker chooses its own port", param_hint="--kafka-port")
    from cdc_relay.embedded import stack

    choice = stack.StackChoice(mysql.value, kafka.value, mysql_port, kafka_port)
    if detach:
        show(stack.up(choice, on_line=lambda line: typer.echo(line, err=True)))
        typer.echo("It runs in the background; end it with: cdc-relay stack down", err=True)
        return
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    stack.run(choice, stop, show_with_hint)


@app.command()
def down() -> None:
    """End the stack and remove its data. Not having one is no error."""
    from cdc_relay.embedded import stack

    ended = stack.down()
    typer.echo("There was no stack." if ended is None else f"Ended the stack of process {ended.pid}; its data is gone.")


@app.command()
def status(
    export: Annotated[
        bool, typer.Option("--export", help='Print only shell exports: eval "$(cdc-relay stack status --export)"')
    ] = False,
) -> None:
    """Tell whether a stack is up and how to reach it. The exit code is 1 when there is none."""
    from cdc_relay.embedded import stack

    state = stack.status()
    if state is None or state.phase != "up":
        typer.echo("The stack is starting." if state else "There is no stack. Start one: cdc-relay stack up", err=True)
        raise typer.Exit(1)
    if export:
        show_exports(state)
    else:
        show(state)


def show(state: stack.StackState) -> None:
    kind = "Apache Kafka" if state.kafka == "real" else "mock broker (5 MiB per partition, gone with this process)"
    typer.echo(f"{state.mysql}: {state.mysql_url}\n{kind}: {state.bootstrap_servers}\n")
    show_exports(state)


def show_with_hint(state: stack.StackState) -> None:
    show(state)
    typer.echo("End it with Ctrl-C.", err=True)


def show_exports(state: stack.StackState) -> None:
    for name, value in state.environment.items():
        typer.echo(f"export {name}='{value}'")


def main() -> None:
    """For ``python -m``, which is how a detached stack is run."""
    try:
        app()
    except RelayError as error:
        typer.echo(f"cdc-relay: {error}", err=True)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
