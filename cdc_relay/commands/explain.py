"""What ``tail --explain-decoder`` prints."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from cdc_relay.commands.output import show_table

if TYPE_CHECKING:
    from cdc_relay.binlog.explain import ExplainedDecoder
    from cdc_relay.config import Settings

_GENERAL = """
1. The general decoder

For a table and a set of columns this function is written once, compiled and kept. It takes the rows that lie between
`at` and `end`, column by column. What is NULL has a bit in `nulls` and takes no bytes; what delivery does not need is
stepped over.
"""

_PLAN = """
2. The plan

Most rows look like the row before: the same columns are NULL, and topic, type, status and counts are as long as they
were. For such a form another function is written. It supposes the form, takes a row apart by one precompiled `Struct`
between columns of free length, and verifies what it supposed: `NULLS` is the bitmap that the row must have, and
`FEW0`, `FEW1` … are the bytes that were seen of the few values, with what they mean. A row that does not fit goes
through the general decoder, and the next one is supposed to look like that.
"""


def show_decoder(settings: Settings) -> None:
    """Print the decoder that is generated for the outbox table, with what it was made for."""
    from cdc_relay.binlog.explain import explain_decoder

    found = explain_decoder(settings)
    columns = [(column.name, column.type, column.size, column.use) for column in found.columns]
    show_table(
        f"The row image of {found.table}", ["column", "type in the binlog", "bytes", "what becomes of it"], columns
    )
    for line in _remarks(found):
        typer.echo(line)
    typer.echo(f"{_GENERAL}\n{found.general}")
    if found.plan is not None:
        typer.echo(f"{_PLAN}\n{found.plan}")


def _remarks(found: ExplainedDecoder) -> list[str]:
    remarks = [
        f"Made from the event that inserted row {found.row_id}.",
        f"The binlog is read by the {found.reader.reader} reader: {found.reader.why}.",
    ]
    if found.absent:
        remarks.append(f"Not in the image, since it is not FULL: {', '.join(found.absent)}.")
    if not found.complete:
        remarks.append("Not all that delivery needs can be decoded: rows are read from the table by their ids.")
    if found.plan is None:
        remarks.append("There is no plan for this form of row: each one goes through the general decoder.")
    elif found.reader.reader == "library":
        remarks.append("The library reader uses the general decoder only.")
    return remarks
