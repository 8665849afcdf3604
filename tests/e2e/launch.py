"""``cdc-relay`` or ``cdc-consumer`` with one fault built in, which no proxy and no signal can make::

    python -m tests.e2e.launch cdc_relay.cli run …

What is to happen is told in ``FAULT_…`` variables. The program itself is as it ships.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from runpy import run_module
from typing import Any

import cdc_relay.outbox.clock


def die_in_checkpoint(step: str) -> None:
    """SIGKILL ourselves right before this step of the third save of the checkpoint: ``write fsync replace folder``."""
    counts = dict.fromkeys(("write", "fsync", "replace", "folder"), 0)

    def dying(name: str) -> None:
        counts[name] += 1
        if name == step and counts[name] == 3:
            os.kill(os.getpid(), signal.SIGKILL)

    real_fsync, real_replace, real_open = os.fsync, os.replace, open

    def fsync(descriptor: int) -> None:
        dying("folder" if os.path.isdir(f"/proc/self/fd/{descriptor}") else "fsync")
        real_fsync(descriptor)

    def replace(source: Any, target: Any) -> None:
        dying("replace")
        real_replace(source, target)

    def opened(file: Any, mode: str = "r", *arguments: Any, **named: Any) -> Any:
        result = real_open(file, mode, *arguments, **named)
        if mode == "wb":
            result.write(b'{"server": "half')  # what a page of a torn write may look like
            result.flush()
            dying("write")
            result.seek(0)
            result.truncate()
        return result

    import cdc_relay.checkpoint as checkpoint

    os.fsync, os.replace = fsync, replace  # type: ignore[assignment]
    vars(checkpoint)["open"] = opened


def full_disk(flag: Path) -> None:
    """fsync says ENOSPC while the file ``flag`` exists."""
    real = os.fsync

    def fsync(descriptor: int) -> None:
        if flag.exists():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(descriptor)

    os.fsync = fsync  # type: ignore[assignment]


def clock_ahead(seconds: float) -> None:
    """This program's clock is ahead of the true time, or behind it."""
    cdc_relay.outbox.clock.utc_now = lambda: datetime.now(UTC) + timedelta(seconds=seconds)


def every_clock_ahead(seconds: float) -> None:
    """The database's clock too, as this program reads it."""
    clock_ahead(seconds)  # before others import it by name
    from cdc_relay.outbox.sql import TableStatements

    TableStatements.database_now = staticmethod(lambda connection: cdc_relay.outbox.clock.utc_now())  # type: ignore[method-assign]


def fatal_producer(flag: Path) -> None:
    """The producer fails for good once, when the file ``flag`` appears: what librdkafka has for tests, by its C API."""
    import ctypes

    import confluent_kafka.cimpl as cimpl

    libraries = {line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines() if "librdkafka" in line}
    library = ctypes.CDLL(next(iter(libraries)))

    class Failing(cimpl.Producer):
        def poll(self, timeout: float = -1) -> Any:
            if flag.exists():
                flag.unlink()
                # The handle is the first field after the object's header (confluent_kafka.h, "Handle").
                handle = ctypes.c_void_p.from_address(id(self) + object.__basicsize__)
                library.rd_kafka_test_fatal_error(handle, 45, b"a test")
            return super().poll(timeout)

    import confluent_kafka

    confluent_kafka.Producer = Failing  # type: ignore[misc]


FAULTS: dict[str, Callable[[str], None]] = {
    "FAULT_DIE_IN_CHECKPOINT": die_in_checkpoint,
    "FAULT_FULL_DISK": lambda flag: full_disk(Path(flag)),
    "FAULT_FATAL_PRODUCER": lambda flag: fatal_producer(Path(flag)),
    "FAULT_CLOCK_AHEAD_S": lambda seconds: clock_ahead(float(seconds)),
    "FAULT_EVERY_CLOCK_AHEAD_S": lambda seconds: every_clock_ahead(float(seconds)),
}

if __name__ == "__main__":
    for variable, fault in FAULTS.items():
        if os.environ.get(variable):
            fault(os.environ[variable])
    sys.argv = sys.argv[1:]
    run_module(sys.argv[0], run_name="__main__", alter_sys=True)
