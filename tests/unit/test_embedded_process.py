"""A server behind its watchdog: with ``sleep`` in the server's place, so that each test takes moments."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cdc_relay.embedded import process
from cdc_relay.embedded.process import GuardedProcess, ProcessError

#: Starts a server and tells where it is; then does what the test wants, and sleeps until it is killed.
OWNER = """
import os, sys, time
from pathlib import Path
from cdc_relay.embedded.process import GuardedProcess
guarded = GuardedProcess("owned")
pid = guarded.start(["sleep", "600"], env={"PATH": os.environ["PATH"]}, cwd=guarded.home, log=guarded.home / "log")
if "fork" in sys.argv and os.fork() == 0:
    os.close(1)
    time.sleep(20)  # holds a copy of the owner's end of the pipe
    os._exit(0)
print(pid, guarded.home, flush=True)
if "exit" in sys.argv:
    os._exit(0)
time.sleep(600)
"""


def eventually(done: Callable[[], bool], what: str, timeout_s: float = 30.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not done():
        assert time.monotonic() < deadline, f"not seen within {timeout_s:g} s: {what}"
        time.sleep(0.02)


def is_gone(pid: int) -> bool:
    """A zombie has ended too; who should reap it is another matter."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


@pytest.fixture
def guarded() -> Iterator[GuardedProcess]:
    started = GuardedProcess("test")
    yield started
    started.close()


def start(guarded: GuardedProcess, *argv: str) -> int:
    return guarded.start(
        argv or ("sleep", "600"), env={"PATH": os.environ["PATH"]}, cwd=guarded.home, log=guarded.home / "log"
    )


def test_closing_ends_the_server_and_removes_its_home(guarded: GuardedProcess) -> None:
    pid = start(guarded)
    assert guarded.pid == pid
    assert guarded.exit_code() is None
    guarded.close()
    assert is_gone(pid)
    assert not guarded.home.exists()
    guarded.close()
    with pytest.raises(ProcessError, match="closed"):
        start(guarded)


def test_closing_ends_the_servers_own_children_too(guarded: GuardedProcess) -> None:
    start(guarded, "sh", "-c", "sleep 600 & echo $! > child; wait")
    child = guarded.home / "child"
    eventually(lambda: child.exists() and child.read_text().endswith("\n"), "the child")
    pid = int(child.read_text())
    guarded.close()
    eventually(lambda: is_gone(pid), "the child's end")


@pytest.mark.parametrize("circumstance", ["", "fork", "exit"], ids=["killed", "killed, with a forked child", "exits"])
def test_the_server_does_not_outlive_its_owner(circumstance: str) -> None:
    with subprocess.Popen([sys.executable, "-c", OWNER, circumstance], stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        number, home = owner.stdout.readline().split()
        assert circumstance == "exit" or not is_gone(int(number))
        owner.kill()
    eventually(lambda: is_gone(int(number)), "the server's end")
    eventually(lambda: not Path(home).exists(), "the removal of its home")


def test_the_server_does_not_outlive_its_watchdog(guarded: GuardedProcess) -> None:
    pid = start(guarded)
    guarded._watchdog.kill()
    eventually(lambda: is_gone(pid), "the server's end")
    with pytest.raises(ProcessError, match="watchdog"):
        guarded.exit_code()
    guarded.close()
    assert not guarded.home.exists()


def test_the_server_outlives_the_thread_that_started_it(guarded: GuardedProcess) -> None:
    thread = threading.Thread(target=start, args=(guarded,))
    thread.start()
    thread.join()
    time.sleep(0.1)
    assert guarded.exit_code() is None
    assert guarded.signal(signal.SIGCONT)


def test_signals_reach_the_server_alone_and_it_can_be_started_again(guarded: GuardedProcess) -> None:
    first = start(guarded)
    with pytest.raises(ProcessError, match="already running"):
        start(guarded)
    assert guarded.signal(signal.SIGKILL)
    assert guarded.wait(30) == -signal.SIGKILL
    assert not guarded.signal(signal.SIGKILL)
    assert guarded.pid is None
    assert start(guarded) != first
    assert guarded.exit_code() is None


def test_a_stopped_server_still_counts_as_running_and_can_be_thrown_away(guarded: GuardedProcess) -> None:
    pid = start(guarded)
    guarded.signal(signal.SIGSTOP)
    assert guarded.wait_until_stopped(30)
    assert process.thread_states(pid) == ["T"]
    assert guarded.wait(0.1) is None
    guarded.close()
    assert is_gone(pid)


def test_a_program_that_is_not_there_is_told(guarded: GuardedProcess) -> None:
    with pytest.raises(ProcessError, match="no-such-server"):
        start(guarded, "no-such-server")


def test_its_output_goes_to_the_log(guarded: GuardedProcess) -> None:
    start(guarded, "sh", "-c", "echo one; echo two >&2; exit 3")
    assert guarded.wait(30) == 3
    start(guarded, "echo", "three")
    assert guarded.wait(30) == 0
    assert process.tail(guarded.home / "log", 2) == "two\nthree"
    assert process.tail(guarded.home / "none") == ""


def test_the_watchdog_is_started_apart_from_the_users_site_and_environment() -> None:
    assert process.watchdog_argv("p-", "/t") == [sys.executable, "-I", "-S", str(process.WATCHDOG), "p-", "/t"]
    assert process.WATCHDOG.exists()


def test_ports_lie_below_those_of_outgoing_connections() -> None:
    ports = {process.free_port() for _ in range(20)}
    assert all(10_000 <= port < process._lowest_ephemeral_port() for port in ports)


def test_a_port_that_somebody_listens_on_is_not_free() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        assert not process.port_is_free(port)
    assert process.port_is_free(port)
