"""``checkpoint show`` and ``checkpoint reset``: the file from which a restart resumes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from cdc_relay.commands import options
from cdc_relay.commands.output import age, as_json, show_table

if TYPE_CHECKING:
    from cdc_relay.checkpoint import FileCheckpointStore

app = typer.Typer(
    help="The binlog position from which a restart resumes, in a file. Losing it loses no row.", no_args_is_help=True
)


@app.command()
def show(
    config: options.ConfigFile = None,
    checkpoint: options.CheckpointPath = None,
    json: options.AsJson = False,
    debug: options.Debug = False,
) -> None:
    """Print the saved position, of which server it is, and when it was saved.

    \b
    Example:
        cdc-relay checkpoint show --checkpoint /var/lib/cdc-relay/relay.json

    \b
    Exit codes: 0 shown, 1 there is none, 2 a setting, 6 it cannot be read or trusted.
    """
    import time
    from dataclasses import asdict
    from datetime import UTC, datetime

    store = _store(config, checkpoint)
    found = store.load()
    if found is None:
        typer.echo(f"there is no checkpoint at {store.path}; the relay will catch up from the table", err=True)
        raise typer.Exit(1)
    if json:
        typer.echo(as_json(asdict(found) | {"path": str(store.path), "position": str(found.position)}))
        return

    def at(seconds: float) -> str:
        return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M:%S} UTC" if seconds else "unknown"

    show_table(
        f"Checkpoint {store.path}",
        ["", ""],
        [
            ("position", str(found.position)),
            ("server", found.server),
            ("last commit before it", at(found.committed_at)),
            ("saved", f"{at(found.written_at)}, {age(max(0.0, time.time() - found.written_at))} ago"),
            ("keys held back then", "yes" if found.parked else "no"),
        ],
    )


@app.command()
def reset(
    config: options.ConfigFile = None, checkpoint: options.CheckpointPath = None, debug: options.Debug = False
) -> None:
    """Forget the saved position, so that the next start catches up from the table: what is pending is sent.

    Nothing is lost and nothing that is published is sent again. Stop the relay first: a running one saves its position
    every second.

    \b
    Example:
        cdc-relay checkpoint reset --checkpoint /var/lib/cdc-relay/relay.json

    \b
    Exit codes: 0 there is none now, 2 a setting, 6 it cannot be removed.
    """
    from cdc_relay.acknowledged import AcknowledgedFile
    from cdc_relay.sent_rows import SentRows

    store = _store(config, checkpoint)
    AcknowledgedFile.beside(store.path).reset()
    SentRows.beside(store.path).reset()
    gone = store.reset()
    typer.echo(f"{store.path}: {'removed' if gone else 'there was none'}")


def _store(config: Path | None, path: Path | None) -> FileCheckpointStore:
    settings = options.load_settings(config, unused=("database.url", "kafka.bootstrap_servers"), checkpoint__path=path)
    from cdc_relay.checkpoint import FileCheckpointStore

    return FileCheckpointStore(settings.checkpoint.path)
