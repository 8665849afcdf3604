"""One requirement, looked at."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from cdc_relay.errors import PreflightFailed


class Level(StrEnum):
    """What became of a check."""

    OK = "ok"
    WARN = "warn"
    """The relay works, but the operator should know."""
    FAIL = "fail"


@dataclass(frozen=True, slots=True)
class Check:
    """``remedy`` is a statement or setting that mends it; empty when there is nothing to mend."""

    name: str
    level: Level
    found: str
    wanted: str = ""
    remedy: str = ""


def ok(name: str, found: str) -> Check:
    """It is as it must be."""
    return Check(name, Level.OK, found)


def raise_first_failure(checks: list[Check]) -> None:
    """Raise PreflightFailed for the first check that failed."""
    for check in checks:
        if check.level is Level.FAIL:
            raise PreflightFailed(f"{check.name}: {check.found}; wanted: {check.wanted}", hint=check.remedy or None)
