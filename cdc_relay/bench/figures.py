"""What came out of a measurement, and how far its runs lay apart. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, fields
from statistics import median
from typing import Any, cast

#: What is shown of a value: so many digits count on a machine that has other things to do as well.
_SIGNIFICANT = 3


def nearest_rank(ordered: Sequence[float], share: float) -> float:
    """The smallest of the ``ordered`` values that is not below ``share`` (0 to 1) of them all. At least one value."""
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


@dataclass(frozen=True, slots=True)
class Figure:
    """One thing that was measured in one situation, as often as it was measured."""

    scenario: str
    """What was done: "catch-up"."""
    case: str
    """With what: "1 row a transaction"."""
    variant: str
    """By whom: "writeback.mode = status"."""
    metric: str
    """What of it: "throughput"."""
    unit: str
    values: tuple[float, ...]
    """One a run, in the order of the runs."""

    @property
    def median(self) -> float:
        """The middle run."""
        return median(self.values)

    @property
    def lowest(self) -> float:
        """The run with the lowest value."""
        return min(self.values)

    @property
    def highest(self) -> float:
        """The run with the highest value."""
        return max(self.values)

    @property
    def spread(self) -> str:
        """``18,000 (12,300 … 18,200)``, or the one value."""
        return spread(self.median, self.lowest, self.highest)

    def plain(self) -> dict[str, Any]:
        """For JSON."""
        summary = {"median": self.median, "lowest": self.lowest, "highest": self.highest}
        return asdict(self) | {"values": list(self.values)} | summary

    @classmethod
    def from_plain(cls, plain: dict[str, Any]) -> Figure:
        """Back from ``plain``."""
        own = {each.name: plain[each.name] for each in fields(cls)}
        return cls(**own | {"values": tuple(plain["values"])})


def metric(name: str, unit: str) -> Any:
    """A field of a dataclass that holds what one run showed; None in it where a run does not show it."""
    return field(metadata={"metric": name, "unit": unit})


def gather(scenario: str, case: str, variant: str, runs: Sequence[Any]) -> list[Figure]:
    """One figure for each ``metric`` of these runs, which are of one dataclass."""
    found = []
    for each in fields(runs[0]):
        values = [getattr(run, each.name) for run in runs]
        if "metric" in each.metadata and None not in values:
            name, unit = each.metadata["metric"], each.metadata["unit"]
            found.append(Figure(scenario, case, variant, name, unit, tuple(cast("list[float]", values))))
    return found


def spread(median: float, lowest: float, highest: float) -> str:
    """The median with three significant digits, and the others with as many decimals; only the one if all are equal.

    ``17,900 (12,300 … 18,200)``, ``19.3 (8.1 … 120.4)``, ``7``.
    """
    if all(value == int(value) and abs(value) < 10**_SIGNIFICANT for value in (median, lowest, highest)):
        decimals = 0
    else:
        decimals = _SIGNIFICANT - 1 - (math.floor(math.log10(abs(median))) if median else 0)
    middle, low, high = (f"{round(value, decimals):,.{max(0, decimals)}f}" for value in (median, lowest, highest))
    return middle if low == high else f"{middle} ({low} … {high})"


def scenarios(figures: Iterable[Figure]) -> list[str]:
    """Their scenarios, each once, in order."""
    return list(dict.fromkeys(each.scenario for each in figures))
