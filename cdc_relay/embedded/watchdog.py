"""The process between an owner and its throwaway server: whatever becomes of the owner, the server goes with it.

Run by path as a script (``python -I -S watchdog.py PREFIX PARENT_DIR``), with the standard library only, so that it
is up in some 30 ms. It makes the server's home folder, starts the server as its own child on request and answers one
JSON line per JSON line. Its standard input is a pipe whose other end only the owner holds, so the kernel closes it
when the owner ends, a SIGKILL included. Then the watchdog kills the server's whole process group and removes the home.

* The end of the pipe alone would not do when the owner has forked without exec (``multiprocessing``): the child holds
  a copy. So the parent's pid is watched as well.
* The server asks for SIGKILL at the death of its parent (``PR_SET_PDEATHSIG``), so it does not outlive a watchdog that
  was itself killed. That signal fires when the forking *thread* ends, which is harmless here, where there is only one,
  and the reason why the owner, who may have many, does not start the server itself.

Requests: ``{"do": "start", "argv": [], "env": {}, "cwd": "", "log": ""}`` -> ``{"pid": 1}``;
``{"do": "signal", "signal": 9}`` -> ``{"sent": true}``; ``{"do": "poll"}`` -> ``{"code": null}`` while it runs.
An answer with ``"error"`` means that the request failed.
"""

from __future__ import annotations

import ctypes
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from typing import Any

#: Seconds between two looks at whether the owner still lives, for the case that its pipe end was inherited.
PARENT_CHECK_S = 0.5
PR_SET_PDEATHSIG = 1


def _die_with_parent() -> None:
    """In the child before exec. Elsewhere than on Linux there is no prctl, and the pipe alone must do."""
    try:
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    except AttributeError:
        pass  # not Linux


class Watchdog:
    """Holds one home folder and at most one running server."""

    def __init__(self, home: str, owner_pid: int) -> None:
        self.home = home
        self.owner_pid = owner_pid
        self.server: subprocess.Popen[bytes] | None = None

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        match request["do"]:
            case "start":
                return self._start(request)
            case "signal":
                return {"sent": self._signal(request["signal"])}
            case "poll":
                return {"code": None if self.server is None else self.server.poll()}
            case other:
                return {"error": f"unknown request {other!r}"}

    def _start(self, request: dict[str, Any]) -> dict[str, Any]:
        if self.server is not None and self.server.poll() is None:
            return {"error": f"already running with pid {self.server.pid}"}
        with open(request["log"], "ab") as log:
            self.server = subprocess.Popen(
                request["argv"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=request["cwd"],
                env=request["env"],
                start_new_session=True,
                preexec_fn=_die_with_parent,
            )
        return {"pid": self.server.pid}

    def _signal(self, number: int) -> bool:
        """Not reaped before ``poll`` says so, hence the pid cannot have become another process's."""
        if self.server is None or self.server.poll() is not None:
            return False
        self.server.send_signal(number)
        return True

    def serve(self) -> None:
        """Answer until the owner is gone."""
        pending = b""
        while os.getppid() == self.owner_pid:
            readable, _, _ = select.select([0], [], [], PARENT_CHECK_S)
            if not readable:
                continue
            received = os.read(0, 65536)
            if not received:
                return
            *lines, pending = (pending + received).split(b"\n")
            for line in lines:
                try:
                    reply = self.answer(json.loads(line))
                except OSError as error:  # the program is not there, or the disk is full
                    reply = {"error": str(error)}
                try:
                    os.write(1, json.dumps(reply).encode() + b"\n")
                except BrokenPipeError:
                    return

    def clean_up(self) -> None:
        if self.server is not None:
            try:
                os.killpg(self.server.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass  # ended before
            self.server.wait()
        for _ in range(20):
            shutil.rmtree(self.home, ignore_errors=True)
            if not os.path.exists(self.home):
                return
            time.sleep(0.1)  # a member of the group may still be writing while it dies


def main() -> None:
    owner_pid = os.getppid()
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGPIPE):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    prefix, parent_dir = sys.argv[1:3]
    watchdog = Watchdog(tempfile.mkdtemp(prefix=prefix, dir=parent_dir), owner_pid)
    try:
        os.write(1, json.dumps({"home": watchdog.home}).encode() + b"\n")
        watchdog.serve()
    finally:
        watchdog.clean_up()


if __name__ == "__main__":
    main()
