"""The servers that are measured on, and what they ran on."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from cdc_relay.embedded.kafka import KafkaBroker
from cdc_relay.embedded.mysql import MysqlServer

PARTITIONS = 6

#: A binlog that is filled fast, and a table that fits in memory: the server is not what is measured.
_MYSQL = {
    "sync_binlog": 0,
    "innodb_flush_log_at_trx_commit": 0,
    "innodb_buffer_pool_size": "1G",
    "loose_innodb_redo_log_capacity": "1G",
    "binlog_cache_size": "1M",
}
_KAFKA: dict[str, str | int] = {"num.partitions": PARTITIONS, "log.segment.bytes": 256 * 2**20}


@dataclass(frozen=True)
class Servers:
    """Where MySQL and Kafka are."""

    mysql_url: str
    bootstrap_servers: str


@contextmanager
def servers(mysql_url: str | None = None, bootstrap_servers: str | None = None) -> Iterator[Servers]:
    """Those given, and throwaway ones for those that are not."""
    with ExitStack() as stack:
        if mysql_url is None:
            mysql_url = stack.enter_context(MysqlServer(flavour="mysql", options=_MYSQL)).url
        if bootstrap_servers is None:
            bootstrap_servers = stack.enter_context(KafkaBroker(tuned=True, options=_KAFKA)).bootstrap_servers
        yield Servers(mysql_url, bootstrap_servers)


def machine() -> str:
    """One line on the machine."""
    model = "unknown processor"
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        model = names[0].partition(": ")[2] if names else model
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    return (
        f"{os.cpu_count()} × {model}, {platform.system()} {platform.release()}, "
        f"Python {platform.python_version()}; load before: {load}"
    )
