"""``check``: is everything there that the relay needs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from cdc_relay.commands import options
from cdc_relay.commands.output import as_json, show_checks

if TYPE_CHECKING:
    from cdc_relay.preflight.check import Check


def add_to(app: typer.Typer) -> None:
    """Give ``app`` this command."""
    app.command()(check)


def check(
    config: options.ConfigFile = None,
    database_url: options.DatabaseUrl = None,
    bootstrap_servers: options.BootstrapServers = None,
    json: options.AsJson = False,
    debug: options.Debug = False,
) -> None:
    """Look at each requirement of MySQL and Kafka and name the statement that mends what is missing.

    Run it with the relay's own account and from where the relay will run. Nothing is changed: writes are tried on no
    row, and the binlog is opened and closed again.

    \b
    Examples:
        cdc-relay check --config relay.toml
        cdc-relay check --json | jq '.[] | select(.level == "fail")'

    \b
    Exit codes: 0 all is well (warnings included), 2 a setting, 3 something of MySQL is missing,
    4 something of Kafka.
    """
    settings = options.load_settings(config, database__url=database_url, kafka__bootstrap_servers=bootstrap_servers)
    from cdc_relay.preflight.report import check_everything, exit_code

    mysql, kafka = check_everything(settings)
    if json:
        typer.echo(as_json([*_plain("mysql", mysql), *_plain("kafka", kafka)]))
    else:
        show_checks("MySQL", mysql)
        show_checks("Kafka", kafka)
    raise typer.Exit(exit_code(mysql, kafka))


def _plain(of: str, checks: list[Check]) -> list[dict[str, str]]:
    from dataclasses import asdict

    return [{"of": of, **asdict(each)} for each in checks]
