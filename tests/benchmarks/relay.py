"""``cdc-relay run`` as a process of its own, watched from outside."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from confluent_kafka import Consumer, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic

from cdc_relay.binlog.position import BinlogPosition
from cdc_relay.checkpoint import Checkpoint, FileCheckpointStore
from tests.benchmarks.servers import PARTITIONS, Servers

_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE_KIB = resource.getpagesize() // 1024


@dataclass(frozen=True)
class Variant:
    """What is measured: settings as environment variables, and the checkout whose code runs (None: this one)."""

    name: str
    settings: dict[str, str]
    checkout: Path | None = None


class RelayProcess:
    """A running relay."""

    def __init__(self, servers: Servers, database_url: str, variant: Variant, checkpoint: Checkpoint | None) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="bench-")
        folder = Path(self._folder.name)
        path = folder / "checkpoint.json"
        if checkpoint is not None:
            FileCheckpointStore(path).save(checkpoint)
        # An installed program is compiled already; its start is not that of one which compiles itself each time.
        unwanted = ("CDC_", "PYTHONDONTWRITEBYTECODE")
        environment = {name: value for name, value in os.environ.items() if not name.startswith(unwanted)}
        environment |= {
            "CDC_NAME": folder.name,
            "CDC_DATABASE__URL": database_url,
            "CDC_KAFKA__BOOTSTRAP_SERVERS": servers.bootstrap_servers,
            "CDC_CHECKPOINT__PATH": str(path),
            "CDC_ADMIN__PORT": "0",
            "PYTHONPATH": str(variant.checkout or Path(__file__).parents[2]),
        } | variant.settings
        self._log = (folder / "log").open("wb")
        self.started_at = time.perf_counter()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "cdc_relay", "run"], env=environment, stderr=self._log, cwd=folder
        )

    def cpu_s(self) -> float:
        """Processor seconds so far, user and system."""
        fields = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / _TICKS

    def peak_mib(self) -> float:
        """Largest resident memory so far."""
        status = Path(f"/proc/{self._process.pid}/status").read_text()
        line = next(line for line in status.splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 1024

    def require_alive(self) -> None:
        """Raise with what it said when it has ended."""
        if self._process.poll() is not None:
            raise RuntimeError(f"the relay has ended:\n{self.said()}")

    def said(self) -> str:
        """Its log."""
        return Path(self._log.name).read_text(errors="replace")

    def stop(self, number: int = signal.SIGTERM) -> None:
        """End it."""
        if self._process.poll() is None:
            self._process.send_signal(number)
            try:
                self._process.wait(60)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        self._log.close()
        self._folder.cleanup()


class Topic:
    """A topic whose ends are watched."""

    def __init__(self, servers: Servers, name: str) -> None:
        self.name = name
        self._admin = AdminClient({"bootstrap.servers": servers.bootstrap_servers})
        for made in self._admin.create_topics([NewTopic(name, PARTITIONS, 1)]).values():
            made.result()
        self._consumer = Consumer({"bootstrap.servers": servers.bootstrap_servers, "group.id": "bench"})

    def records(self) -> int:
        """How many records it has; 0 as long as the cluster does not know."""
        try:
            return self._count()
        except KafkaException:  # its leaders are just being chosen
            return 0

    def _count(self) -> int:
        return sum(
            self._consumer.get_watermark_offsets(TopicPartition(self.name, partition), timeout=10)[1]
            for partition in range(PARTITIONS)
        )

    def delete(self) -> None:
        """Remove it."""
        self._consumer.close()
        for deleted in self._admin.delete_topics([self.name]).values():
            deleted.result()


def checkpoint_at(server: str, position: BinlogPosition) -> Checkpoint:
    """A checkpoint as a relay would have left it at ``position``."""
    return Checkpoint(server, position, 0, 0.0, time.time())
