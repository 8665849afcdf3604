"""The demo itself, small: what it prints last, what it leaves, and how it ends when something goes wrong."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from cdc_relay.demo import programs
from cdc_relay.demo import round as demo_round
from cdc_relay.demo.programs import ProgramEnded
from cdc_relay.demo.round import Choices, play

SMALL = ("--rows", "400", "--conversations", "10", "--rate", "0")


@pytest.fixture
def demo(tmp_path: Path) -> Any:
    """Starts ``cdc-relay demo`` with all that it makes under ``tmp_path``."""

    def start(*argv: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "cdc_relay", "demo", *argv],
            # A setting of the developer's own must not reach the programs under test.
            env={**os.environ, "TMPDIR": str(tmp_path), "CDC_DATABASE__TIMEZONE": "Asia/Tokyo"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            # As from a terminal; what a shell starts in the background ignores Ctrl-C.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )

    return start


@pytest.fixture
def quiet() -> Iterator[Console]:
    with open(os.devnull, "w") as nowhere:
        yield Console(file=nowhere)


def leftovers(folder: Path) -> list[str]:
    """Folders, and processes that were started in or for one."""
    seen = [path.name for path in folder.iterdir()]
    for line in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if str(folder) in line.read_text():
                seen.append(line.read_text().replace("\0", " "))
        except OSError:
            pass  # it has ended
    return seen


@pytest.mark.parametrize("kafka", ["embedded", "real"])
def test_the_last_line_is_the_verdict_as_json(demo: Any, tmp_path: Path, kafka: str) -> None:
    with demo(*SMALL, "--json", "--kafka", kafka) as program:
        out, err = program.communicate(timeout=280)
    assert program.returncode == 0, err
    [line] = out.splitlines()
    told = json.loads(line)
    expected = {"inserted": 400, "published": 400, "consumed": 400, "lost": 0, "duplicates_applied": 0}
    assert told.items() >= (expected | {"out_of_order": 0, "ok": True, "rows": 400}).items()
    assert told["latency_ms"]["p50"] <= told["latency_ms"]["p99"]
    assert told["rolled_back"] > 0
    assert ("mock broker" in err) == (kafka == "embedded")
    assert leftovers(tmp_path) == []


def test_without_json_people_are_told(demo: Any) -> None:
    with demo(*SMALL, "--mysql", "mariadb") as program:
        out, err = program.communicate(timeout=280)
    assert program.returncode == 0, err
    assert "mock broker" in out
    assert "Verdict: nothing lost, nothing doubled, nothing out of order." in out


def test_ctrl_c_leaves_nothing(demo: Any, tmp_path: Path) -> None:
    with demo("--rows", "100000", "--rate", "200") as program:
        for line in program.stdout:
            if "writers commit" in line:
                break
        program.send_signal(signal.SIGINT)
        _, err = program.communicate(timeout=120)
    assert program.returncode == 130, err
    assert "Traceback" not in err
    assert leftovers(tmp_path) == []


def choices(rows: int = 200) -> Choices:
    return Choices(rows=rows, conversations=4, kafka="embedded", mysql="auto", rate=0)


def test_a_program_that_ends_is_told_with_its_log(quiet: Console, monkeypatch: pytest.MonkeyPatch) -> None:
    def mistaken(settings: dict[str, str], checkpoint: Path) -> programs.Program:
        return programs.Program("cdc-relay", ["cdc_relay", "run", "--log-level=loud"], settings)

    monkeypatch.setattr(programs, "relay", mistaken)
    with pytest.raises(ProgramEnded, match=r"(?s)cdc-relay ended by itself with code 2.*log.level"):
        play(choices(), quiet)


def test_a_consumer_that_does_nothing_is_no_success(quiet: Console, monkeypatch: pytest.MonkeyPatch) -> None:
    def elsewhere(settings: dict[str, str], _: str) -> programs.Program:
        return programs.Program("cdc-consumer", ["consumer.cli", "run", "--topics=another"], settings)

    monkeypatch.setattr(programs, "consumer", elsewhere)
    monkeypatch.setattr(demo_round, "_STALLED_S", 3.0)
    outcome = play(choices(), quiet)
    assert not outcome.is_good
    assert (outcome.verdict.published, outcome.verdict.consumed, outcome.verdict.lost) == (200, 0, 200)
