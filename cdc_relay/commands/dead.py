"""``dead list`` and ``dead requeue``: rows that no retry will deliver any more."""

from __future__ import annotations

from typing import Annotated

import typer

from cdc_relay.commands import options
from cdc_relay.commands.output import as_json, show_table

app = typer.Typer(
    help="Rows that have used up their retries, or that no retry can cure. They stay until you requeue them.",
    no_args_is_help=True,
)


@app.command("list")
def list_(
    limit: Annotated[int, typer.Option(min=1, help="At most so many, the newest first.")] = 50,
    config: options.ConfigFile = None,
    database_url: options.DatabaseUrl = None,
    json: options.AsJson = False,
    debug: options.Debug = False,
) -> None:
    """List dead rows with the reason of each.

    \b
    Examples:
        cdc-relay dead list --config relay.toml
        cdc-relay dead list --json --limit 1000 | jq -r '.[].last_error' | sort | uniq -c

    \b
    Exit codes: 0 listed (also when there are none), 2 a setting, 3 MySQL.
    """
    settings = options.load_settings(config, unused=("kafka.bootstrap_servers",), database__url=database_url)
    from cdc_relay.outbox.database import make_engine, transaction
    from cdc_relay.outbox.statements import OutboxStatements

    engine = make_engine(settings.database, pool_size=1)
    with transaction(engine) as connection:
        rows = [dict(row._mapping) for row in OutboxStatements(settings.database.table).dead(connection, limit)]
    engine.dispose()
    if json:
        typer.echo(as_json(rows))
    elif not rows:
        typer.echo("there are no dead rows")
    else:
        columns = ["id", "biz_type", "topic", "message_key", "retry_count", "updated_at", "last_error"]
        cells = [[str("" if row[column] is None else row[column])[:300] for column in columns] for row in rows]
        show_table(
            f"Dead rows of {settings.database.table}",
            [">id", "biz_type", "topic", "key", ">retries", "since", "reason"],
            cells,
        )


@app.command()
def requeue(
    ids: Annotated[list[int] | None, typer.Argument(metavar="[ID]...", help="Ids of the rows.", min=1)] = None,
    every: Annotated[bool, typer.Option("--all", help="Every dead row.")] = False,
    config: options.ConfigFile = None,
    database_url: options.DatabaseUrl = None,
    debug: options.Debug = False,
) -> None:
    """Make dead rows pending again, with all their retries; a running relay or sweep sends them within a second.

    Mend what killed them first, or they die again. Rows of one key are sent in id order.

    \b
    Examples:
        cdc-relay dead requeue 4711 4712 --config relay.toml
        cdc-relay dead requeue --all --config relay.toml

    \b
    Exit codes: 0 done, 1 some of the given ids are not dead, 2 a setting or argument, 3 MySQL.
    """
    if every == bool(ids):
        raise typer.BadParameter("give ids, or --all for every dead row", param_hint="ID")
    settings = options.load_settings(config, unused=("kafka.bootstrap_servers",), database__url=database_url)
    from cdc_relay.outbox.clock import to_column, utc_now
    from cdc_relay.outbox.database import make_engine, transaction
    from cdc_relay.outbox.statements import OutboxStatements

    engine = make_engine(settings.database, pool_size=1)
    with transaction(engine) as connection:
        now = to_column(utc_now(), settings.database.zone)
        changed = OutboxStatements(settings.database.table).requeue_dead(connection, ids or None, now)
    engine.dispose()
    typer.echo(f"requeued {changed}")
    if ids and changed < len(set(ids)):
        typer.echo(f"{len(set(ids)) - changed} of the given ids are not dead rows", err=True)
        raise typer.Exit(1)
