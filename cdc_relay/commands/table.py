"""``init-db`` and ``status``: the tables, and where things stand."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from cdc_relay.commands import options
from cdc_relay.commands.output import age, as_json, show_table

if TYPE_CHECKING:
    from cdc_relay.status import RelayStatus


def add_to(app: typer.Typer) -> None:
    """Give ``app`` these commands."""
    app.command("init-db")(init_db)
    app.command()(status)


def init_db(
    print_sql: Annotated[bool, typer.Option("--print", help="Only print the SQL; no server is needed.")] = False,
    config: options.ConfigFile = None,
    database_url: options.DatabaseUrl = None,
    debug: options.Debug = False,
) -> None:
    """Create the tables that are missing: the outbox, chat_histories and agent_chats.

    Existing tables are never altered: they belong to the application. `cdc-relay check` tells whether they will do.

    \b
    Examples:
        cdc-relay init-db --database-url mysql://admin:secret@db/shop
        cdc-relay init-db --print > tables.sql

    \b
    Exit codes: 0 done, 2 a setting, 3 MySQL.
    """
    unused = ("kafka.bootstrap_servers", *(("database.url",) if print_sql else ()))
    settings = options.load_settings(config, unused=unused, database__url=None if print_sql else database_url)
    from cdc_relay import tables

    if print_sql:
        typer.echo(tables.sql(settings.database.table))
        return
    for name, created in tables.create_missing(settings.database).items():
        typer.echo(f"{name}: {'created' if created else 'is there already, left as it is'}")


def status(
    config: options.ConfigFile = None,
    database_url: options.DatabaseUrl = None,
    checkpoint: options.CheckpointPath = None,
    name: options.Name = None,
    json: options.AsJson = False,
    debug: options.Debug = False,
) -> None:
    """Tell where things stand: rows by status, the oldest pending one, position and lag, and who is active.

    It asks the database and the checkpoint file; lag is what the checkpoint is behind the server. By which reader the
    binlog is read is told by the relay on this machine that listens on admin.host and admin.port, if there is one.
    Counting costs the server about 0.1 s for a million rows; beyond a million, consumed ones are estimated.

    \b
    Examples:
        cdc-relay status --config relay.toml
        cdc-relay status --json | jq .rows.dead

    \b
    Exit codes: 0 told, 2 a setting, 3 MySQL.
    """
    settings = options.load_settings(
        config,
        unused=("kafka.bootstrap_servers",),
        database__url=database_url,
        checkpoint__path=checkpoint,
        name=name,
    )
    from cdc_relay.status import look

    found = look(settings)
    if json:
        typer.echo(as_json(found.plain()))
    else:
        _show(found)


def _show(found: RelayStatus) -> None:
    rows = [(name, f"{'about ' if name in found.estimated else ''}{n:,}") for name, n in found.rows.items()]
    show_table(f"Rows of {found.table}", ["status", ">rows"], rows)
    lines = [*_pending(found), *_blocked(found), *_binlog(found), *_locks(found), *_reader(found)]
    show_table(f"Relay {found.name!r}", ["", ""], lines)
    for what, why in found.unknown.items():
        typer.echo(f"{what} unknown: {why}")


def _pending(found: RelayStatus) -> list[tuple[str, str]]:
    oldest = found.oldest_pending
    if oldest is None:
        return [("oldest pending", "none")]
    lines = [("oldest pending", f"id {oldest.id}, created {age(oldest.age_s)} ago")]
    if oldest.retry_count or oldest.last_error:
        due = f", next attempt {oldest.next_retry_at:%Y-%m-%d %H:%M:%S} UTC" if oldest.next_retry_at else ""
        failed = f"failed {oldest.retry_count} times{due}: " if oldest.retry_count else ""  # else it waits for another
        lines.append(("", failed + (oldest.last_error or "no reason")[:200]))
    return lines


def _blocked(found: RelayStatus) -> list[tuple[str, str]]:
    if not found.blocked_keys:
        return []
    some = ", ".join(map(str, found.blocked_by[:10])) + (" …" if len(found.blocked_by) > 10 else "")
    return [("keys held back", f"{found.blocked_keys}, until these dead rows are requeued or discarded: {some}")]


def _binlog(found: RelayStatus) -> list[tuple[str, str]]:
    at = found.checkpoint
    saved = f"{at.position}, saved {age(at.age_s)} ago" if at.position else f"none at {at.path}"
    lag = "unknown"
    if found.lag_bytes is not None and found.lag_seconds is not None:
        lag = f"{found.lag_bytes:,} bytes, {age(found.lag_seconds)}"
    return [("checkpoint", saved), ("head of the binlog", found.head or "unknown"), ("lag", lag)]


def _locks(found: RelayStatus) -> list[tuple[str, str]]:
    lines = []
    for lock in found.locks:
        part = "sweeping" if lock.lock.endswith(":sweep") else "tailing"
        if lock.connection_id is None:
            lines.append((part, "nobody"))
        else:
            who = f", {lock.user} from {lock.host}" if lock.host else ""
            lines.append((part, f"connection {lock.connection_id}{who}"))
    return lines


def _reader(found: RelayStatus) -> list[tuple[str, str]]:
    if found.reader is None:
        return []
    if found.reader.told_by:
        told_by = f"told by the relay at {found.reader.told_by}"
    else:
        told_by = "what a relay started here would use; none of this name answers on admin.host and admin.port"
    return [("binlog reader", f"{found.reader.reader}: {found.reader.why}"), ("", told_by)]
