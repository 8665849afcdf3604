"""What was measured on: the machine, the versions, and what makes the servers quick or slow."""

from __future__ import annotations

import os
import platform
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from confluent_kafka import libversion
from sqlalchemy import Connection, text

from cdc_relay import __version__

#: Settings of the server that decide what a commit and an UPDATE cost.
_VARIABLES = ("version", "sync_binlog", "innodb_flush_log_at_trx_commit", "binlog_row_image", "innodb_buffer_pool_size")
_LIBRARIES = ("mysql-replication", "PyMySQL", "orjson", "pysimdjson", "zlib-ng")


def machine_facts() -> dict[str, str]:
    """By name, for people."""
    load = " ".join(f"{value:.1f}" for value in os.getloadavg())
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {
        "taken at": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        "machine": f"{os.cpu_count()} × {_processor()}, {memory:.0f} GiB",
        "load before": load,
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "cdc-relay": __version__,
        "librdkafka": libversion()[0],
    } | {name: _version(name) for name in _LIBRARIES}


def server_facts(connection: Connection) -> dict[str, str]:
    """The same of a MySQL."""
    values = connection.execute(text("SELECT " + ", ".join(f"@@{name}" for name in _VARIABLES))).one()
    found = dict(zip(_VARIABLES, map(str, values), strict=True))
    return {"mysql": found.pop("version")} | found


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.machine())


def _version(library: str) -> str:
    try:
        return version(library)
    except PackageNotFoundError:
        return "unknown"
