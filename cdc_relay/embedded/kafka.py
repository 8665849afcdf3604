"""A throwaway Kafka: the real broker on one KRaft node, or librdkafka's mock for a demo that must start at once."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import tempfile
import uuid
from base64 import urlsafe_b64encode
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from confluent_kafka import Producer

from cdc_relay.embedded import cache
from cdc_relay.embedded.process import free_port
from cdc_relay.embedded.progress import step
from cdc_relay.embedded.server import ThrowawayServer
from cdc_relay.errors import KafkaUnavailable, MissingTool

KAFKA_VERSION = "4.3.1"
LOG4J_VERSION = "2.25.3"
OLDEST_JAVA = 17
MAVEN_TIMEOUT_S = 600.0
FORMAT_TIMEOUT_S = 60.0

POM = f"""<project xmlns="http://maven.apache.org/POM/4.0.0">
  <modelVersion>4.0.0</modelVersion>
  <groupId>cdc-relay</groupId><artifactId>embedded-kafka</artifactId><version>1</version>
  <dependencies>
    <dependency>
      <groupId>org.apache.kafka</groupId><artifactId>kafka_2.13</artifactId><version>{KAFKA_VERSION}</version>
    </dependency>
    <dependency>
      <groupId>org.apache.logging.log4j</groupId><artifactId>log4j-core</artifactId><version>{LOG4J_VERSION}</version>
    </dependency>
    <dependency>
      <groupId>org.apache.logging.log4j</groupId><artifactId>log4j-slf4j-impl</artifactId>
      <version>{LOG4J_VERSION}</version>
    </dependency>
  </dependencies>
</project>
"""

LOG4J = """\
appender.out.type = Console
appender.out.name = out
appender.out.layout.type = PatternLayout
appender.out.layout.pattern = %d{ISO8601} %p %m (%c{1})%n%throwable
rootLogger.level = info
rootLogger.appenderRef.out.ref = out
"""


class KafkaBroker(ThrowawayServer):
    """A real Apache Kafka, broker and controller in one process, gone after the ``with`` block::

        with KafkaBroker(options={"message.max.bytes": 2_000_000}) as broker:
            Producer({"bootstrap.servers": broker.bootstrap_servers})

    Needs Java 17 or later; the jars come once from Maven Central. Topics are made on first use with one partition
    unless ``options`` say otherwise; replication factors are 1.
    """

    name = "kafka"
    unavailable = KafkaUnavailable

    def __init__(
        self,
        *,
        options: Mapping[str, str | int | bool] | None = None,
        tuned: bool = False,
        port: int | None = None,
        start_timeout_s: float = 120.0,
        stop_timeout_s: float = 60.0,
    ) -> None:
        """``options`` are broker properties. ``tuned`` is for measuring: 1 GiB of heap and the optimising compiler,
        where the default is 512 MiB and whatever starts soonest."""
        super().__init__(port=port, start_timeout_s=start_timeout_s, stop_timeout_s=stop_timeout_s)
        self.options = dict(options or {})
        self.tuned = tuned
        self._java = ""
        self._libraries = Path()
        self._controller_port = 0

    @property
    def bootstrap_servers(self) -> str:
        return f"{self.host}:{self.port}"

    def _choose_ports(self) -> int:
        self._controller_port = free_port()
        return free_port()

    def _prepare(self, home: Path) -> None:
        self._java = find_java()
        self._libraries = fill_cache() / "libs"
        (home / "log4j2.properties").write_text(LOG4J, encoding="utf-8")
        self._controller_port = self._controller_port or free_port()

    def _argv(self) -> Sequence[str]:
        configuration = self.home / "server.properties"
        configuration.write_text(
            "".join(f"{name}={_text(value)}\n" for name, value in self._properties().items()), encoding="utf-8"
        )
        if not (self.data_dir / "meta.properties").exists():
            with step(f"formatting the storage of Kafka {KAFKA_VERSION}"):
                self._format(configuration)
        return [*self._java_argv(), "kafka.Kafka", str(configuration)]

    def _java_argv(self) -> list[str]:
        speed = ["-Xms1g", "-Xmx1g"] if self.tuned else ["-Xmx512m", "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC"]
        return [
            self._java,
            *speed,
            "-Djava.awt.headless=true",
            "-XX:-UsePerfData",
            f"-Dlog4j2.configurationFile={self.home / 'log4j2.properties'}",
            "-cp",
            f"{self._libraries}/*",
        ]

    def _properties(self) -> dict[str, str | int | bool]:
        own: dict[str, str | int | bool] = {
            "process.roles": "broker,controller",
            "node.id": 1,
            "controller.quorum.voters": f"1@{self.host}:{self._controller_port}",
            "listeners": f"PLAINTEXT://{self.host}:{self.port},CONTROLLER://{self.host}:{self._controller_port}",
            "controller.listener.names": "CONTROLLER",
            "log.dirs": str(self.data_dir),
            "group.initial.rebalance.delay.ms": 0,
            "offsets.topic.replication.factor": 1,
            "offsets.topic.num.partitions": 5,
            "transaction.state.log.replication.factor": 1,
            "transaction.state.log.min.isr": 1,
            "transaction.state.log.num.partitions": 5,
            "share.coordinator.state.topic.replication.factor": 1,
            "share.coordinator.state.topic.min.isr": 1,
        }
        return own | self.options

    def _format(self, configuration: Path) -> None:
        cluster = urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
        argv = [*self._java_argv(), "kafka.tools.StorageTool", "format", "-t", cluster, "-c", str(configuration)]
        try:
            done = subprocess.run(argv, capture_output=True, text=True, timeout=FORMAT_TIMEOUT_S, check=False)
        except subprocess.TimeoutExpired as expired:
            raise KafkaUnavailable(f"Kafka's storage was not formatted in {FORMAT_TIMEOUT_S:g} s") from expired
        if done.returncode != 0:
            raise KafkaUnavailable(f"Kafka's storage could not be formatted:\n{(done.stdout + done.stderr)[-3000:]}")

    def _is_ready(self) -> bool:
        """It binds its port some seconds before it serves; the log line tells when it does."""
        return "Kafka Server started" in self.log_tail(20) and self._accepts()

    def _accepts(self) -> bool:
        try:
            socket.create_connection((self.host, self.port), timeout=1).close()
        except OSError:
            return False
        return True


def _text(value: str | int | bool) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


class MockKafka:
    """librdkafka's mock broker, inside this process: up in milliseconds, no Java. For demos that say so.

    Consumer groups, idempotence and transactions work, also from other processes. But it keeps only 5 MiB per
    partition and drops older records silently, knows no CreateTopics (topics appear on first use), forgets everything
    when it ends, and cannot be stopped and brought back. So nothing about delivery is ever claimed on its account.
    """

    name = "kafka"

    def __init__(self) -> None:
        self._producer: Any = None
        self._bootstrap_servers = ""

    @property
    def bootstrap_servers(self) -> str:
        return self._bootstrap_servers

    def start(self) -> Self:
        """Raises KafkaUnavailable."""
        if self._producer is None:
            # The mock lives in the client instance that names it, so the producer is kept.
            producer = Producer({"bootstrap.servers": "unused", "test.mock.num.brokers": 1, "log_level": 3})
            brokers = producer.list_topics(timeout=10).brokers.values()
            self._bootstrap_servers = ",".join(f"{broker.host}:{broker.port}" for broker in brokers)
            if not self._bootstrap_servers:
                raise KafkaUnavailable("librdkafka's mock broker did not come up")
            self._producer = producer
        return self

    def close(self) -> None:
        self._producer = None
        self._bootstrap_servers = ""

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def find_java() -> str:
    """A Java of version 17 or later. Raises MissingTool."""
    home = os.environ.get("JAVA_HOME")
    candidates = [str(Path(home) / "bin/java")] if home else []
    if (on_path := shutil.which("java")) is not None:
        candidates.append(on_path)
    for java in candidates:
        try:
            said = subprocess.run([java, "-version"], capture_output=True, text=True, timeout=30, check=False).stderr
        except OSError:
            continue
        version = re.search(r'version "(\d+)', said)
        if version and int(version[1]) >= OLDEST_JAVA:
            return java
    raise MissingTool(
        f"Kafka needs Java {OLDEST_JAVA} or later",
        hint="Install it: apt-get install default-jre-headless",
    )


def fill_cache() -> Path:
    """The folder with Kafka's jars, fetched with Maven when there is none yet. Raises MissingTool."""
    return cache.fill("kafka", _fetch)


def _fetch(root: Path) -> str:
    maven = shutil.which("mvn")
    if maven is None:
        raise MissingTool(
            f"Kafka {KAFKA_VERSION} is fetched with Maven, which is missing", hint="Install it: apt-get install maven"
        )
    with tempfile.TemporaryDirectory(prefix="cdc-relay-maven-") as folder, step(f"fetching Kafka {KAFKA_VERSION}"):
        pom = Path(folder) / "pom.xml"
        pom.write_text(POM, encoding="utf-8")
        argv = [maven, "-q", "-B", "-f", str(pom), "dependency:copy-dependencies", f"-DoutputDirectory={root / 'libs'}"]
        try:
            done = subprocess.run(argv, capture_output=True, text=True, timeout=MAVEN_TIMEOUT_S, check=False)
        except subprocess.TimeoutExpired as expired:
            raise MissingTool(f"Maven was not done after {MAVEN_TIMEOUT_S:g} s") from expired
        if done.returncode != 0:
            raise MissingTool(f"Maven could not fetch Kafka {KAFKA_VERSION}:\n{(done.stdout + done.stderr)[-3000:]}")
    return KAFKA_VERSION
