"""The owner's side of a throwaway server's process: start it behind a watchdog, signal it, watch it, throw it away."""

from __future__ import annotations

import json
import os
import random
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cdc_relay.errors import RelayError

WATCHDOG = Path(__file__).with_name("watchdog.py")
#: Seconds that the watchdog may take for one answer; each takes well under a millisecond of work.
ANSWER_TIMEOUT_S = 30.0
#: Seconds that killing the server and removing its home may take.
CLEAN_UP_TIMEOUT_S = 60.0
POLL_S = 0.02


class ProcessError(RelayError):
    """The watchdog did not do as asked; the message says what and why."""


def watchdog_argv(prefix: str, parent_dir: str) -> list[str]:
    """``-I -S``: neither the environment, nor the user's site, nor a ``.pth`` file may change or slow it."""
    return [sys.executable, "-I", "-S", str(WATCHDOG), prefix, parent_dir]


class GuardedProcess:
    """One server process that cannot outlive this process, with a home folder that goes with it.

    Its home exists from construction until ``close``. The server may be started again after it has ended.
    All methods are safe to call from several threads.
    """

    def __init__(self, name: str) -> None:
        """``name`` shows in the home folder's name. Raises ProcessError when the watchdog does not come up."""
        self._name = name
        self._lock = threading.Lock()
        self._pending = b""
        self._pid: int | None = None
        self._home: Path | None = None
        self._watchdog = subprocess.Popen(
            watchdog_argv(f"cdc-relay-{name}-", tempfile.gettempdir()),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            # Its own session: Ctrl-C at the terminal must reach the owner, who stops the server in an orderly way.
            start_new_session=True,
        )
        try:
            self._home = Path(self._read_answer()["home"])
        except BaseException:
            self.close()
            raise

    @property
    def home(self) -> Path:
        """The temporary folder that goes with the server."""
        assert self._home is not None, "the watchdog tells it before the constructor returns"
        return self._home

    @property
    def pid(self) -> int | None:
        """The server's own process id while it was last seen running, else None."""
        return self._pid

    def start(self, argv: Sequence[str], *, env: Mapping[str, str], cwd: Path, log: Path) -> int:
        """Start the server, its output appended to ``log``; returns its pid. Raises ProcessError."""
        answer = self._ask({"do": "start", "argv": list(argv), "env": dict(env), "cwd": str(cwd), "log": str(log)})
        self._pid = int(answer["pid"])
        return self._pid

    def signal(self, number: signal.Signals) -> bool:
        """Send a signal to the server alone, not to the watchdog; False when it has ended already."""
        return bool(self._ask({"do": "signal", "signal": int(number)})["sent"])

    def exit_code(self) -> int | None:
        """None while it runs (or was never started), else its exit code, negative for a signal."""
        code: int | None = self._ask({"do": "poll"})["code"]
        if code is not None:
            self._pid = None
        return code

    def wait(self, timeout_s: float) -> int | None:
        """Its exit code, or None when it still runs after ``timeout_s``."""
        deadline = time.monotonic() + timeout_s
        while (code := self.exit_code()) is None and time.monotonic() < deadline:
            time.sleep(POLL_S)
        return code

    def wait_until_stopped(self, timeout_s: float) -> bool:
        """Whether every thread of it was seen standing still after a SIGSTOP; True as well when it has ended."""
        deadline = time.monotonic() + timeout_s
        while self.exit_code() is None:
            if self._pid is None or all(state in "Tt" for state in thread_states(self._pid)):
                return True
            if time.monotonic() > deadline:
                return False
            time.sleep(POLL_S / 4)
        return True

    def close(self) -> None:
        """Kill the server if it runs, remove its home, end the watchdog. Safe to call twice."""
        with self._lock:
            if self._watchdog.stdin is None or self._watchdog.stdin.closed:
                return
            self._watchdog.stdin.close()
            self._pid = None
            try:
                self._watchdog.wait(CLEAN_UP_TIMEOUT_S)
            except subprocess.TimeoutExpired as expired:
                self._watchdog.kill()
                self._watchdog.wait()
                raise ProcessError(f"{self._name} was not cleaned up within {CLEAN_UP_TIMEOUT_S:g} s") from expired
            finally:
                assert self._watchdog.stdout is not None
                self._watchdog.stdout.close()
            if self._watchdog.returncode != 0 and self._home is not None:
                # The watchdog was itself killed; the server went with it, but the home did not.
                shutil.rmtree(self._home, ignore_errors=True)

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        with self._lock:
            stdin = self._watchdog.stdin
            if stdin is None or stdin.closed:
                raise ProcessError(f"{self._name} was closed")
            try:
                stdin.write(json.dumps(request).encode() + b"\n")
            except BrokenPipeError as error:
                raise ProcessError(f"the watchdog of {self._name} is gone") from error
            answer = self._read_answer()
        if "error" in answer:
            raise ProcessError(f"{self._name}: {answer['error']}")
        return answer

    def _read_answer(self) -> dict[str, Any]:
        assert self._watchdog.stdout is not None
        descriptor = self._watchdog.stdout.fileno()
        deadline = time.monotonic() + ANSWER_TIMEOUT_S
        while b"\n" not in self._pending:
            readable, _, _ = select.select([descriptor], [], [], max(0.0, deadline - time.monotonic()))
            if not readable:
                raise ProcessError(f"the watchdog of {self._name} gave no answer for {ANSWER_TIMEOUT_S:g} s")
            received = os.read(descriptor, 65536)
            if not received:
                raise ProcessError(f"the watchdog of {self._name} ended unasked")
            self._pending += received
        line, _, self._pending = self._pending.partition(b"\n")
        answer: dict[str, Any] = json.loads(line)
        return answer


def thread_states(pid: int) -> list[str]:
    """The state letter of each thread, see proc_pid_stat(5); none where there is no /proc."""
    states = []
    for stat in Path(f"/proc/{pid}/task").glob("*/stat"):
        try:
            states.append(stat.read_text().rpartition(")")[2].split()[0])
        except (FileNotFoundError, ProcessLookupError):
            continue  # that thread has just ended
    return states


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nothing listens on, below the range that outgoing connections draw from.

    A port of that range would be lost while the server is down: a client that keeps trying to reconnect to it is
    sooner or later given it as its *source* port, connects to itself, and the server cannot bind it again.
    """
    for _ in range(100):
        port = random.randint(10_000, _lowest_ephemeral_port() - 1)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise ProcessError("no free TCP port on 127.0.0.1 after 100 attempts")


def port_is_free(port: int) -> bool:
    """Whether a server could listen on this port of 127.0.0.1. Connections that are still closing do not hinder it."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


def _lowest_ephemeral_port() -> int:
    try:
        lowest = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    except (OSError, ValueError):
        lowest = 32_768
    return lowest if lowest > 11_000 else 32_768


def tail(path: Path, lines: int = 30) -> str:
    """The last lines of a log, empty when there is none."""
    try:
        with path.open("rb") as log:
            log.seek(0, os.SEEK_END)
            log.seek(max(0, log.tell() - 400 * lines))
            return "\n".join(log.read().decode("utf-8", "replace").splitlines()[-lines:])
    except FileNotFoundError:
        return ""
