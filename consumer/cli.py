"""``cdc-consumer``: the console script and its commands."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cdc_relay import __version__
from cdc_relay.program import run_program

if TYPE_CHECKING:
    from cdc_relay.config import Settings

app = typer.Typer(
    help="""Consume the outbox's records from Kafka: write their effect into MySQL, mark the rows consumed.

\b
A first round, without Docker and without root:
    cdc-relay stack up --detach
    eval "$(cdc-relay stack status --export)"
    cdc-relay init-db
    cdc-consumer check --topics chat-history
    cdc-consumer run --topics chat-history

Settings come from a TOML file (--config), CDC_ variables and flags, the last one winning. The relay reads the same
file.

\b
Exit codes: 0 done or stopped in good order, 1 something unexpected or a second signal, 2 a wrong setting or argument,
3 MySQL, 4 Kafka.
""",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,  # plain help keeps examples whole, and is quicker
    pretty_exceptions_enable=False,
    context_settings={"max_content_width": 120},
)

ConfigFile = Annotated[Path | None, typer.Option("--config", help="TOML file with settings; or CDC_CONFIG.")]
DatabaseUrl = Annotated[
    str | None,
    typer.Option(
        "--database-url",
        help="mysql://user:password@host:3306/database; or CDC_DATABASE__URL, which ps(1) does not show to others.",
    ),
]
BootstrapServers = Annotated[
    str | None,
    typer.Option(
        "--bootstrap-servers", help="Kafka brokers, host:port joined by commas; or CDC_KAFKA__BOOTSTRAP_SERVERS."
    ),
]
Topics = Annotated[
    list[str] | None,
    typer.Option(
        "--topics", help='A topic to read; may be given several times; or CDC_CONSUMER__TOPICS, as ["a", "b"].'
    ),
]
GroupId = Annotated[
    str | None,
    typer.Option("--group-id", help="Consumer group; its members share the partitions; or CDC_CONSUMER__GROUP_ID."),
]
AdminPort = Annotated[
    int | None, typer.Option("--admin-port", help="Port of /metrics, /healthz and /readyz; 0: any free one.")
]
DrainTimeout = Annotated[float, typer.Option("--drain-timeout", min=0.1, help="Seconds that an orderly stop may take.")]
LogLevel = Annotated[str | None, typer.Option("--log-level", help="debug, info, warning or error.")]
#: Read from the command line itself when an error is told; declared so that it is known and shown.
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"cdc-consumer {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Only for the options before the command; the help is that of ``app``."""


@app.command()
def run(
    config: ConfigFile = None,
    database_url: DatabaseUrl = None,
    bootstrap_servers: BootstrapServers = None,
    topics: Topics = None,
    group_id: GroupId = None,
    admin_port: AdminPort = None,
    drain_timeout: DrainTimeout = 30.0,
    log_level: LogLevel = None,
    debug: Debug = False,
) -> None:
    """Run the consumer until SIGTERM or SIGINT.

    Each record takes effect once, however often it comes. More of these programs with the same --group-id share the
    partitions, so start as many as you need, on as many hosts.

    \b
    Example:
        cdc-consumer run --topics chat-history \\
            --database-url mysql://consumer:secret@db/shop --bootstrap-servers kafka:9092

    SIGTERM or SIGINT: it takes no more records, finishes what it has in hand, commits the offsets, and exits 0.
    A second signal ends it at once, exit code 1; that loses nothing, and what is read again has no second effect.

    \b
    Exit codes: 0 stopped, 1 unexpected, 2 a setting, 3 MySQL, 4 Kafka.
    """
    settings = _settings(config, database_url, bootstrap_servers, topics, group_id, admin_port, log_level)
    from cdc_relay import logs
    from cdc_relay.interpreter import tune_interpreter
    from consumer.service import Service

    logs.configure(settings.log, program="cdc-consumer")
    tune_interpreter()
    Service(settings).run(drain_timeout_s=drain_timeout)


@app.command()
def check(
    config: ConfigFile = None,
    database_url: DatabaseUrl = None,
    bootstrap_servers: BootstrapServers = None,
    topics: Topics = None,
    group_id: GroupId = None,
    log_level: LogLevel = None,
    debug: Debug = False,
) -> None:
    """Ask Kafka and MySQL whether the consumer could run; makes missing topics where that is allowed.

    Run it with the consumer's own account and from where it will run. Every write is tried, for no row.

    \b
    Example:
        cdc-consumer check --config relay.toml

    \b
    Exit codes: 0 it could run, 2 a setting, 3 something of MySQL is missing, 4 something of Kafka.
    """
    settings = _settings(config, database_url, bootstrap_servers, topics, group_id, None, log_level)
    from cdc_relay import logs
    from consumer.service import Service

    logs.configure(settings.log, program="cdc-consumer")
    Service(settings).check()
    typer.echo("ok: Kafka answers and has the topics; MySQL answers, has the tables and grants what is needed")


def main() -> None:
    """Run the command that ``sys.argv`` names and exit with its code."""
    run_program(lambda: app(prog_name="cdc-consumer"))


def _settings(
    config: Path | None,
    database_url: str | None,
    bootstrap_servers: str | None,
    topics: list[str] | None,
    group_id: str | None,
    admin_port: int | None,
    log_level: str | None,
) -> Settings:
    from cdc_relay.config_layers import load  # pydantic: not needed for --help

    flags: dict[str, Any] = {
        "database.url": database_url,
        "kafka.bootstrap_servers": bootstrap_servers,
        "consumer.topics": topics or None,
        "consumer.group_id": group_id,
        "admin.port": admin_port,
        "log.level": log_level,
    }
    return load(flags, config=config, environ=os.environ)


if __name__ == "__main__":
    main()
