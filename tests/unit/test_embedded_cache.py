"""The cache is filled once, whole or not at all."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from cdc_relay.embedded import cache

#: Says when it has begun, takes its time, and leaves a trace for each time it was really built.
FILL = """
import os, sys, time
from pathlib import Path
from cdc_relay.embedded import cache
def build(part):
    with open(os.environ["TRACE"], "a") as trace:
        trace.write("built\\n")
    time.sleep(float(sys.argv[1]))
    (part / "server").write_text("whole")
    return "1.0"
print(cache.fill("thing", build), flush=True)
"""


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("TRACE", str(tmp_path / "trace"))
    return tmp_path / "cache/cdc-relay"


def filling(seconds: float) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", FILL, str(seconds)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def test_two_runs_at_once_build_once_and_get_the_same_folder(root: Path, tmp_path: Path) -> None:
    with filling(1.0) as one, filling(1.0) as other:
        told = {one.communicate(timeout=60)[0], other.communicate(timeout=60)[0]}
    assert told == {f"{root / 'thing-1.0'}\n"}
    assert (tmp_path / "trace").read_text() == "built\n"


def test_a_run_killed_half_way_leaves_nothing_that_counts(root: Path, tmp_path: Path) -> None:
    with filling(60) as doomed:
        deadline = time.monotonic() + 30
        while not (tmp_path / "trace").exists():
            assert time.monotonic() < deadline, "the build never began"
            time.sleep(0.02)
        doomed.kill()
    assert cache.cached("thing") is None

    def build(part: Path) -> str:
        (part / "server").write_text("whole")
        return "1.0"

    assert cache.fill("thing", build) == root / "thing-1.0"
    assert sorted(path.name for path in root.iterdir()) == [".thing.lock", "thing-1.0"]


def test_a_build_that_fails_leaves_nothing(root: Path) -> None:
    def build(part: Path) -> str:
        (part / "half").write_text("half")
        raise RuntimeError("the network is gone")

    with pytest.raises(RuntimeError, match="network"):
        cache.fill("thing", build)
    assert [path.name for path in root.iterdir()] == [".thing.lock"]


def test_any_version_will_do_unless_one_is_asked_for(root: Path) -> None:
    cache.fill("thing", lambda part: "1.0")
    assert cache.fill("thing", lambda part: pytest.fail("built again")) == root / "thing-1.0"
    assert cache.fill("thing", lambda part: "", version="2:0/x") == root / "thing-2_0_x"
    assert cache.cached("thing", "3.0") is None


def test_names_do_not_shadow_each_other(root: Path) -> None:
    cache.fill("kafka-warm", lambda part: "1")
    assert cache.cached("kafka") is None


def test_a_relative_cache_home_is_ignored(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "somewhere")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache.cache_root() == tmp_path / ".cache/cdc-relay"
