"""Write the generated parts of the documentation: ``python docs/generate.py``. A test fails when they are out of date.

A generated part stands between ``<!-- generated: NAME -->`` and ``<!-- end of NAME -->``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from annotated_types import Ge, Gt, Le
from prometheus_client import CollectorRegistry
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from cdc_relay.bench.figures import Figure, scenarios
from cdc_relay.config import Settings
from cdc_relay.metrics import RelayMetrics
from consumer.metrics import ConsumerMetrics

DOCS = Path(__file__).parent

#: Files of ``python -m tests.benchmarks --out``, in the order of the page.
RESULTS = ("rivals", "rivals_latency", "results", "backlog", "earlier", "soak")

#: What the figures depend on most, beside the machine.
FACTS = ("mysql", "kafka", "python", "cdc-relay", "librdkafka", "debezium", "maxwell", "load before")


def settings() -> Iterator[tuple[str, str, str, str]]:
    """Each setting with its default, what it takes, and what it is for."""
    yield "name", *_described(Settings.model_fields["name"])
    for section, field in Settings.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            for name, inner in field.annotation.model_fields.items():
                yield f"{section}.{name}", *_described(inner)


def environment_name(setting: str) -> str:
    """``kafka.properties`` -> ``CDC_KAFKA__PROPERTIES``."""
    return "CDC_" + setting.replace(".", "__").upper()


def settings_table() -> str:
    """Every setting, one a line."""
    rows = (
        (f"`{name}`", f"`{environment_name(name)}`", f"`{default}`" if default else "", takes, meaning)
        for name, default, takes, meaning in settings()
    )
    return _table(("setting", "environment", "default", "takes", "what it is for"), rows)


def metrics_table(which: Literal["relay", "consumer"]) -> str:
    """Every metric of one of the programs, one a line."""
    registry = CollectorRegistry()
    if which == "relay":
        RelayMetrics(registry)
    else:
        ConsumerMetrics(registry)
    rows = []
    for family in registry.collect():
        name = family.name + {"counter": "_total", "info": "_info"}.get(family.type, "")
        rows.append((f"`{name}`", family.type, family.documentation))
    return _table(("metric", "type", "what it tells"), sorted(rows))


def figures() -> str:
    """What the documented sets of benchmarks have shown; each was taken in one go, perhaps not on the same machine."""
    paths = (DOCS / "benchmarks" / f"{name}.json" for name in RESULTS)
    return "\n\n".join(_figures(path) for path in paths if path.exists())


def _figures(path: Path) -> str:
    """A drawing and a table a scenario."""
    content = json.loads(path.read_text("utf-8"))
    measured = [Figure.from_plain(each) for each in content["figures"]]
    facts = ", ".join(f"{name} {content['facts'][name]}" for name in FACTS if name in content["facts"])
    taken = f"Taken {content['facts']['taken at']} on {content['facts']['machine']}; {facts}."
    parts = []
    for scenario in scenarios(measured):
        own = [each for each in measured if each.scenario == scenario]
        drawing = f"{scenario.replace(' ', '-')}.svg"
        parts.append(f"### {scenario.capitalize()}")
        if (path.parent / drawing).exists():
            parts.append(f"![{scenario}](benchmarks/{drawing})")
        metrics = list(dict.fromkeys(f"{each.metric}, {each.unit}" for each in own))
        cells: dict[tuple[str, str], dict[str, str]] = {}
        for each in own:
            cells.setdefault((each.case, each.variant), {})[f"{each.metric}, {each.unit}"] = each.spread
        rows = ((*key, *(values.get(metric, "") for metric in metrics)) for key, values in cells.items())
        parts.append(_table(("with", "by", *metrics), rows))
    return "\n\n".join([taken, *parts])


PARTS: dict[str, Callable[[], str]] = {
    "figures": figures,
    "settings": settings_table,
    "relay metrics": lambda: metrics_table("relay"),
    "consumer metrics": lambda: metrics_table("consumer"),
}


def renewed(page: str) -> str:
    """``page`` with its generated parts as they must be now."""

    def renew(found: re.Match[str]) -> str:
        name = found[1]
        return f"<!-- generated: {name} -->\n{PARTS[name]()}\n<!-- end of {name} -->"

    return re.sub(r"<!-- generated: (.+?) -->.*?<!-- end of \1 -->", renew, page, flags=re.DOTALL)


def _described(field: FieldInfo) -> tuple[str, str, str]:
    default = field.get_default(call_default_factory=True)
    shown = "" if default in (None, "", [], {}) else str(default).lower() if isinstance(default, bool) else str(default)
    return shown, _takes(field), field.description or ""


def _takes(field: FieldInfo) -> str:
    kind: Any = field.annotation
    limits = list(field.metadata)
    for inner in get_args(kind):  # Annotated[int, …] | None
        limits += getattr(inner, "__metadata__", ())
        kind = get_args(inner)[0] if hasattr(inner, "__metadata__") else kind
    for limit in limits:
        limits += getattr(limit, "metadata", ())
    if get_origin(kind) is Literal:
        return ", ".join(get_args(kind))
    words = {int: "whole number", float: "number", bool: "true, false", str: "text", Path: "path"}
    name = words.get(kind) or (
        "list" if get_origin(kind) is list else "table" if get_origin(kind) is dict else str(kind)
    )
    low = next((f"≥ {limit.ge}" for limit in limits if isinstance(limit, Ge)), "")
    low = next((f"> {limit.gt}" for limit in limits if isinstance(limit, Gt)), low)
    bounds = [limit.le for limit in limits if isinstance(limit, Le)]
    high = next((f"≤ {bound}" for bound in bounds if isinstance(bound, int | float) and bound < 10**9), "")
    return ", ".join(filter(None, (name, low, "" if high == f"≤ {86_400 * 365}" else high)))


def _table(heading: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [heading, tuple("---" for _ in heading), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def main() -> None:
    for path in sorted(DOCS.glob("*.md")):
        before = path.read_text("utf-8")
        if (after := renewed(before)) != before:
            path.write_text(after, "utf-8")
            print(f"{path.name}: written")


if __name__ == "__main__":
    main()
