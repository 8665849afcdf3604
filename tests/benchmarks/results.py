"""Results in files: JSON with every run, for the plot and for later; CSV with one figure a line, for a spreadsheet."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cdc_relay.bench.figures import Figure, scenarios
from tests.benchmarks.svg import Bar, Panel, chart

_COLUMNS = ("scenario", "case", "variant", "metric", "unit", "median", "lowest", "highest", "runs")


def save(path: Path, facts: dict[str, str], figures: Sequence[Figure]) -> None:
    """``path`` as JSON, and the same with ``.csv`` beside it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content: dict[str, Any] = {"facts": facts, "figures": [each.plain() for each in figures]}
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", "utf-8")
    with path.with_suffix(".csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, _COLUMNS, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        for each in figures:
            writer.writerow(each.plain() | {"runs": len(each.values)})


def load(path: Path) -> tuple[dict[str, str], list[Figure]]:
    """What ``save`` wrote."""
    content = json.loads(path.read_text("utf-8"))
    return content["facts"], [Figure.from_plain(each) for each in content["figures"]]


def plot(path: Path, folder: Path) -> list[Path]:
    """One SVG a scenario of the results in ``path``, a panel a metric; the files written."""
    facts, figures = load(path)
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for scenario in scenarios(figures):
        own = [each for each in figures if each.scenario == scenario]
        metrics = dict.fromkeys((each.metric, each.unit) for each in own)
        panels = [
            Panel(f"{name}, {unit}", [_bar(each) for each in own if (each.metric, each.unit) == (name, unit)])
            for name, unit in metrics
        ]
        footer = "; ".join(filter(None, (facts.get("machine"), facts.get("taken at"))))
        written.append(folder / f"{scenario.replace(' ', '-')}.svg")
        written[-1].write_text(chart(scenario.capitalize(), panels, footer), "utf-8")
    return written


def _bar(figure: Figure) -> Bar:
    return Bar(figure.case, figure.variant, figure.median, figure.lowest, figure.highest)
