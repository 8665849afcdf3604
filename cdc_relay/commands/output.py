"""How commands print: tables for people, JSON for programs."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cdc_relay.preflight.check import Check


def show_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table on stdout. A column whose name begins with ``>`` is aligned to the right; "" has no heading."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=SIMPLE_HEAD, show_header=any(columns), pad_edge=False)
    for column in columns:
        # Folded, never cut: who pipes this into a file must find ids and positions whole.
        table.add_column(column.lstrip(">"), justify="right" if column.startswith(">") else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))  # Text: brackets in an error are no markup
    # Where nobody looks at the width, as in a pipe, rich would take 80 columns.
    console = Console() if sys.stdout.isatty() else Console(width=160)
    console.print(Text(title, style="bold"))
    console.print(table)


def show_checks(title: str, checks: Sequence[Check]) -> None:
    """Print each check on a line of its own, with what mends it below where that is needed."""
    from rich.console import Console
    from rich.text import Text

    console = Console()
    styles = {"ok": "green", "warn": "yellow", "fail": "bold red"}
    width = max((len(check.name) for check in checks), default=0)
    console.print(Text(title, style="bold"))
    for check in checks:
        line = Text.assemble(
            ("  ", ""), (f"{check.level:4}", styles[check.level]), f"  {check.name:{width}}  {check.found}"
        )
        console.print(line, soft_wrap=True)
        for label, words in (("wanted", check.wanted), ("mend", check.remedy)):
            if check.level != "ok" and words:
                console.print(Text(f"        {label}: {words}"), soft_wrap=True)


def as_json(value: Any) -> str:
    """``value`` as indented JSON; times as RFC 3339."""
    import json

    return json.dumps(value, indent=2, ensure_ascii=False, default=_plain)


def _plain(value: object) -> str:
    return value.isoformat() if isinstance(value, datetime) else str(value)


def age(seconds: float | None) -> str:
    """``3.2 s``, ``4 min``, ``5.1 h``, ``2.0 d``."""
    if seconds is None:
        return "an unknown time"
    for limit, unit, size in ((120.0, "s", 1.0), (7_200.0, "min", 60.0), (172_800.0, "h", 3600.0)):
        if seconds < limit:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds / 86_400:.1f} d"
