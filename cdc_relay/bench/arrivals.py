"""A consumer in a process of its own that notes when each record came, so that the writer does not slow it.

Run as ``python -m cdc_relay.bench.arrivals TOPIC ENDS FILE`` with its settings in CDC_ variables; ``ENDS`` says as JSON
where it begins in each partition. It appends to ``FILE``, for each record, the number in the row's payload and the time
of its arrival. The first entry, with a number below 0, says that it is ready.
"""

from __future__ import annotations

import json
import os
import re
import struct
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from confluent_kafka import Consumer, TopicPartition

import cdc_relay
from cdc_relay.bench.place import ThrowawayTopic
from cdc_relay.bench.relay import MeasurementFailed
from cdc_relay.bench.settings import as_environment, inherited
from cdc_relay.config import Settings
from cdc_relay.config_layers import load
from cdc_relay.embedded.process import GuardedProcess, tail
from cdc_relay.kafka.clients import known_to

_ENTRY = struct.Struct("<qd")
_READY = -1
#: In the payload, be that in an envelope, by itself, or text within the JSON of a whole row.
_NUMBER = re.compile(rb'"number\\?": (\d+)')
_READY_S = 30.0
_LOOK_S = 0.05


class Arrivals:
    """What has come to a topic since this was made."""

    def __init__(self, process: GuardedProcess, file: Path, log: Path) -> None:
        self._process = process
        self._file = file
        self._log = log

    def wait(self, rows: int, patience_s: float, on_wait: Callable[[], None]) -> dict[int, float]:
        """When the first record of each of so many rows came, in seconds since 1970, by the number of the row.

        Raises MeasurementFailed when they have not all come after ``patience_s``, and what ``on_wait`` raises.
        """
        deadline = time.monotonic() + patience_s
        while len(found := self._read()) < rows:
            if time.monotonic() > deadline or self._process.exit_code() is not None:
                raise MeasurementFailed(f"{len(found)} of {rows} rows came to the consumer:\n{tail(self._log)}")
            on_wait()
            time.sleep(_LOOK_S)
        return found

    def wait_until_ready(self) -> None:
        """Raises MeasurementFailed."""
        deadline = time.monotonic() + _READY_S
        while not self._file.exists() or not self._file.stat().st_size:
            if time.monotonic() > deadline or self._process.exit_code() is not None:
                raise MeasurementFailed(f"the consumer does not get ready:\n{tail(self._log)}")
            time.sleep(_LOOK_S)

    def _read(self) -> dict[int, float]:
        content = self._file.read_bytes()
        found: dict[int, float] = {}
        for number, at in _ENTRY.iter_unpack(content[: len(content) // _ENTRY.size * _ENTRY.size]):
            if number != _READY:
                found.setdefault(number, at)
        return found


@contextmanager
def arrivals(topic: ThrowawayTopic, settings: Settings) -> Iterator[Arrivals]:
    """A consumer that reads ``topic`` from its present end on."""
    process = GuardedProcess("bench")
    try:
        file, log = process.home / "arrivals", process.home / "log"
        environment = inherited() | as_environment(settings) | {"PYTHONPATH": str(Path(cdc_relay.__file__).parents[1])}
        ends = json.dumps(topic.ends())
        argv = [sys.executable, "-m", "cdc_relay.bench.arrivals", topic.name, ends, str(file)]
        process.start(argv, env=environment, cwd=process.home, log=log)
        found = Arrivals(process, file, log)
        found.wait_until_ready()
        yield found
    finally:
        process.close()


def main() -> None:
    """Read until killed."""
    topic, ends, file = sys.argv[1:]
    kafka = load(environ=os.environ).kafka
    properties = kafka.client_properties(
        group_id="cdc-relay-bench", client_id="cdc-relay-bench", enable_auto_commit=False, fetch_wait_max_ms=50
    )
    consumer = Consumer(known_to("consumer", properties))
    consumer.assign([TopicPartition(topic, int(partition), end) for partition, end in json.loads(ends).items()])
    consumer.poll(0.5)  # connects
    with open(file, "wb", buffering=0) as entries:
        entries.write(_ENTRY.pack(_READY, time.time()))
        while True:
            record = consumer.poll(1.0)
            now = time.time()
            if record is not None and record.error() is None and (found := _NUMBER.search(record.value() or b"")):
                entries.write(_ENTRY.pack(int(found[1]), now))


if __name__ == "__main__":
    main()
