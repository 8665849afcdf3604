"""``cdc-consumer``: commands, and exit codes by the class of the error."""

from __future__ import annotations

import os
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from cdc_relay.errors import RelayError

if TYPE_CHECKING:
    from cdc_relay.config import Settings

app = typer.Typer(
    help="Consume the outbox's records from Kafka: write the chat history, mark the rows consumed.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

_CONFIG = typer.Option(None, "--config", help="TOML file with settings; CDC_CONFIG names one too.")
_DATABASE_URL = typer.Option(None, "--database-url", help="mysql://user:password@host:3306/database")
_BOOTSTRAP_SERVERS = typer.Option(None, "--bootstrap-servers", help="Kafka brokers: host:port, joined by commas.")
_TOPICS = typer.Option(None, "--topics", help="A topic to read; may be given several times.")
_GROUP_ID = typer.Option(None, "--group-id", help="Consumer group; its members share the partitions.")
_ADMIN_PORT = typer.Option(None, "--admin-port", help="Port of /metrics, /healthz and /readyz; 0 for any free one.")
_DRAIN_TIMEOUT = typer.Option(30.0, "--drain-timeout", min=0.1, help="Seconds that an orderly stop may take.")
_LOG_LEVEL = typer.Option(None, "--log-level", help="debug, info, warning or error.")
_DEBUG = typer.Option(False, "--debug", help="Show the traceback of an error.")


@app.command()
def run(
    config: Path | None = _CONFIG,
    database_url: str | None = _DATABASE_URL,
    bootstrap_servers: str | None = _BOOTSTRAP_SERVERS,
    topics: list[str] | None = _TOPICS,
    group_id: str | None = _GROUP_ID,
    admin_port: int | None = _ADMIN_PORT,
    drain_timeout: float = _DRAIN_TIMEOUT,
    log_level: str | None = _LOG_LEVEL,
    debug: bool = _DEBUG,
) -> None:
    """Consume until SIGTERM or SIGINT."""
    with _reported(debug):
        settings = _settings(config, database_url, bootstrap_servers, topics, group_id, admin_port, log_level)
        from cdc_relay import logs
        from cdc_relay.interpreter import tune_interpreter
        from consumer.service import Service

        logs.configure(settings.log, program="cdc-consumer")
        tune_interpreter()
        Service(settings).run(drain_timeout_s=drain_timeout)


@app.command()
def check(
    config: Path | None = _CONFIG,
    database_url: str | None = _DATABASE_URL,
    bootstrap_servers: str | None = _BOOTSTRAP_SERVERS,
    topics: list[str] | None = _TOPICS,
    group_id: str | None = _GROUP_ID,
    log_level: str | None = _LOG_LEVEL,
    debug: bool = _DEBUG,
) -> None:
    """Ask Kafka and MySQL whether the consumer could run; makes missing topics where that is allowed."""
    with _reported(debug):
        settings = _settings(config, database_url, bootstrap_servers, topics, group_id, None, log_level)
        from cdc_relay import logs
        from consumer.service import Service

        logs.configure(settings.log, program="cdc-consumer")
        Service(settings).check()
        typer.echo("ok: Kafka answers and has the topics; MySQL answers, has the tables and grants what is needed")


def main() -> None:
    """The console script."""
    app()


def _settings(
    config: Path | None,
    database_url: str | None,
    bootstrap_servers: str | None,
    topics: list[str] | None,
    group_id: str | None,
    admin_port: int | None,
    log_level: str | None,
) -> Settings:
    from cdc_relay.config import load  # pydantic: not needed for --help

    flags: dict[str, Any] = {
        "database.url": database_url,
        "kafka.bootstrap_servers": bootstrap_servers,
        "consumer.topics": topics or None,
        "consumer.group_id": group_id,
        "admin.port": admin_port,
        "log.level": log_level,
    }
    return load(flags, config=config, environ=os.environ)


@contextmanager
def _reported(debug: bool) -> Iterator[None]:
    """One line on stderr for an error of ours, and its exit code."""
    try:
        yield
    except RelayError as error:
        if debug:
            traceback.print_exc()
        typer.echo(f"cdc-consumer: {' '.join(str(error).split())}", err=True)
        raise typer.Exit(error.exit_code) from error


if __name__ == "__main__":
    main()
