"""The error tree: what its docstring draws is what there is, and what the command line and loops rely on."""

from __future__ import annotations

import inspect
import re
from typing import NamedTuple

import pytest

from cdc_relay import errors
from cdc_relay.errors import PoisonRow, RelayError, StaleSource


class Drawn(NamedTuple):
    parent: str | None
    retriable: bool
    exit_code: int | None
    """None where the drawing says nothing: then it is the parent's."""


def drawn() -> dict[str, Drawn]:
    tree: dict[str, Drawn] = {}
    ancestors: list[tuple[int, str]] = []
    for line in (inspect.getdoc(errors) or "").splitlines():
        match = re.match(r"(?P<branch>[│├└─ ]*)(?P<name>[A-Z]\w+) {2,}(?P<rest>.*)", line)
        if not match:
            continue
        depth = len(match["branch"])
        ancestors = [(at, name) for at, name in ancestors if at < depth]
        code = re.search(r"exit code (\d+)", match["rest"])
        tree[match["name"]] = Drawn(
            ancestors[-1][1] if ancestors else None, "· retriable" in line, int(code[1]) if code else None
        )
        ancestors.append((depth, match["name"]))
    return tree


def real() -> dict[str, type[Exception]]:
    return {
        name: found
        for name, found in vars(errors).items()
        if inspect.isclass(found) and issubclass(found, Exception) and found.__module__ == errors.__name__
    }


def test_the_docstring_draws_every_error_and_no_other() -> None:
    assert list(drawn()) == list(real()), "same names, in the same order"


@pytest.mark.parametrize("name", real())
def test_an_error_is_where_the_docstring_draws_it(name: str) -> None:
    found, said = real()[name], drawn()[name]
    assert issubclass(found, RelayError)
    parent = found.__base__
    assert parent is not None
    assert said.parent == (None if found is RelayError else parent.__name__)
    assert found.retriable == said.retriable
    assert found.exit_code == (parent.exit_code if said.exit_code is None else said.exit_code)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("name", "code"),
    [
        *(("RelayError", 1), ("RowError", 1), ("ConfigurationError", 2), ("MissingTool", 5), ("CheckpointError", 6)),
        *(("DatabaseError", 3), ("DatabaseUnavailable", 3), ("PreflightFailed", 3), ("StaleSource", 3)),
        *(("KafkaError", 4), ("KafkaUnavailable", 4), ("ProducerFatal", 4)),
    ],
)
def test_exit_codes_are_a_promise_to_scripts(name: str, code: int) -> None:
    found = real()[name]
    assert issubclass(found, RelayError)
    assert found.exit_code == code


def test_an_error_says_what_is_wrong_and_how_to_mend_it() -> None:
    error = RelayError("the disk is full", hint="Make room")
    assert (error.message, error.hint, str(error)) == ("the disk is full", "Make room", "the disk is full. Make room")
    assert str(PoisonRow("no JSON")) == "no JSON"


def test_a_stale_source_carries_the_reason_that_is_counted() -> None:
    error = StaleSource("binlog.000001 was purged", reason="purged")
    assert (error.reason, error.retriable) == ("purged", False)
