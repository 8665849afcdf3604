"""The commands of ``cdc-relay``, one module a group of them.

Only typer is imported at the top of these modules: what a command needs it imports itself, so that ``--help`` is quick
and ``run`` does not wait for what only the demo needs.
"""

from __future__ import annotations

from typing import Annotated

import typer

from cdc_relay import __version__
from cdc_relay.commands import bench, check, checkpoint, dead, demo, run, table
from cdc_relay.embedded.cli import app as stack

app = typer.Typer(
    help="""Bring the rows of a transactional outbox from MySQL's binlog to Kafka.

\b
A first round, without Docker and without root:
    cdc-relay demo
A round of your own:
    cdc-relay stack up --detach
    eval "$(cdc-relay stack status --export)"
    cdc-relay init-db
    cdc-relay check
    cdc-relay run

Settings come from a TOML file (--config), CDC_ variables and flags, the last one winning.

\b
Exit codes: 0 done or stopped in good order, 1 something unexpected or a failed check, 2 a wrong setting or argument,
3 MySQL, 4 Kafka, 5 a program is missing on this machine, 6 the checkpoint file.
""",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,  # plain help keeps examples whole, and is quicker
    pretty_exceptions_enable=False,
    context_settings={"max_content_width": 120},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"cdc-relay {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Only for the options before the command; the help is that of ``app``."""


run.add_to(app)
table.add_to(app)
check.add_to(app)
demo.add_to(app)
bench.add_to(app)
app.add_typer(checkpoint.app, name="checkpoint")
app.add_typer(dead.app, name="dead")
app.add_typer(stack, name="stack")
