"""``dead list``, ``dead requeue`` and ``dead discard``: rows that no retry will deliver any more."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cdc_relay.commands import options
from cdc_relay.commands.output import as_json, show_table

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from cdc_relay.outbox.operator_statements import OperatorStatements

app = typer.Typer(
    help="Rows that have used up their retries, or that no retry can cure. They stay until you requeue them. "
    "With ordering.on_dead = block each holds back its key until you requeue or discard it.",
    no_args_is_help=True,
)

#: Rows decided on in one transaction.
_BATCH_ROWS = 10_000

Ids = Annotated[list[int] | None, typer.Argument(metavar="[ID]...", help="Ids of the rows.", min=1)]
Every = Annotated[bool, typer.Option("--all", help="Every dead row.")]


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
    from cdc_relay.outbox.operator_statements import OperatorStatements

    engine = make_engine(settings.database, pool_size=1)
    with transaction(engine) as connection:
        rows = [dict(row._mapping) for row in OperatorStatements(settings.database.table).dead(connection, limit)]
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
    ids: Ids = None,
    every: Every = False,
    config: options.ConfigFile = None,
    database_url: options.DatabaseUrl = None,
    debug: options.Debug = False,
) -> None:
    """Make dead rows pending again, with all their retries; a running relay or sweep sends them within a second.

    Mend what killed them first, or they die again. Rows of one key are sent in id order, and later ones that wait for
    a dead row (ordering.on_dead = block) follow once it is delivered.

    \b
    Examples:
        cdc-relay dead requeue 4711 4712 --config relay.toml
        cdc-relay dead requeue --all --config relay.toml

    \b
    Exit codes: 0 done, 1 some of the given ids are not dead, 2 a setting or argument, 3 MySQL.
    """
    changed = _decide(ids, every, config, database_url, lambda statements: statements.requeue_dead)
    typer.echo(f"requeued {changed}")
    if ids and changed < len(set(ids)):
        typer.echo(f"{len(set(ids)) - changed} of the given ids are not dead rows", err=True)
        raise typer.Exit(1)


@app.command()
def discard(
    ids: Ids = None,
    every: Every = False,
    config: options.ConfigFile = None,
    database_url: options.DatabaseUrl = None,
    debug: options.Debug = False,
) -> None:
    """Let dead rows go: their messages will not arrive, and later rows of their keys wait for them no longer.

    For ordering.on_dead = block. The rows stay dead, with "discarded: " before the reason, and can be requeued still;
    their keys go on within two seconds. To delete a dead row does the same.

    \b
    Examples:
        cdc-relay dead discard 4711 4712 --config relay.toml
        cdc-relay dead discard --all --config relay.toml

    \b
    Exit codes: 0 done, 1 some of the given ids are not dead or were discarded before, 2 a setting or argument, 3 MySQL.
    """
    changed = _decide(ids, every, config, database_url, lambda statements: statements.discard_dead)
    typer.echo(f"discarded {changed}")
    if ids and changed < len(set(ids)):
        typer.echo(f"{len(set(ids)) - changed} of the given ids are not dead rows, or were discarded before", err=True)
        raise typer.Exit(1)


def _decide(
    ids: list[int] | None,
    every: bool,
    config: Path | None,
    database_url: str | None,
    which: Callable[[OperatorStatements], Callable[[Connection, Sequence[int], datetime], int]],
) -> int:
    """Run the statement for these ids, or for every dead row; how many rows it has changed.

    For a batch at a time, lowest ids first: there may be more than a transaction should lock, and than a server updates
    in ``database.read_timeout_s``. What was done when it is broken off stays done.
    """
    if every == bool(ids):
        raise typer.BadParameter("give ids, or --all for every dead row", param_hint="ID")
    settings = options.load_settings(config, unused=("kafka.bootstrap_servers",), database__url=database_url)
    from cdc_relay.outbox.clock import to_column, utc_now
    from cdc_relay.outbox.database import make_engine, transaction
    from cdc_relay.outbox.operator_statements import OperatorStatements

    engine = make_engine(settings.database, pool_size=1)
    statements = OperatorStatements(settings.database.table)
    waiting, seen, changed, last_id = sorted(set(ids or ())), 0, 0, 0
    while True:
        with transaction(engine) as connection:
            batch = waiting[seen : seen + _BATCH_ROWS] if ids else statements.dead_ids(connection, last_id, _BATCH_ROWS)
            if not batch:
                break
            changed += which(statements)(connection, batch, to_column(utc_now(), settings.database.zone))
        seen, last_id = seen + len(batch), batch[-1]
        if len(batch) == _BATCH_ROWS:
            typer.echo(f"{seen} rows so far", err=True)
    engine.dispose()
    return changed
