"""What a throwaway Kafka is made of: its jars, a formatted storage to copy, and an archive of loaded classes."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
import uuid
from base64 import urlsafe_b64encode
from collections.abc import Mapping
from pathlib import Path

from cdc_relay.embedded import cache
from cdc_relay.embedded.java import Java, maven
from cdc_relay.embedded.progress import step
from cdc_relay.errors import KafkaUnavailable, MissingTool

KAFKA_VERSION = "4.3.1"
LOG4J_VERSION = "2.25.3"
MAVEN_TIMEOUT_S = 600.0
TOOL_TIMEOUT_S = 60.0

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


def fill_cache() -> Path:
    """The folder with ``libs`` and ``log4j2.properties``, fetched with Maven when there is none. Raises MissingTool."""
    return cache.fill("kafka", _fetch, version=KAFKA_VERSION)


def _fetch(root: Path) -> str:
    program, env = maven()
    (root / "log4j2.properties").write_text(LOG4J, encoding="utf-8")
    with tempfile.TemporaryDirectory(prefix="cdc-relay-maven-") as folder, step(f"fetching Kafka {KAFKA_VERSION}"):
        pom = Path(folder) / "pom.xml"
        pom.write_text(POM, encoding="utf-8")
        argv = [
            *program,
            "-q",
            "-B",
            "-f",
            str(pom),
            "dependency:copy-dependencies",
            f"-DoutputDirectory={root / 'libs'}",
        ]
        try:
            done = subprocess.run(argv, env=env, capture_output=True, text=True, timeout=MAVEN_TIMEOUT_S, check=False)
        except subprocess.TimeoutExpired as expired:
            raise MissingTool(f"Maven was not done after {MAVEN_TIMEOUT_S:g} s") from expired
        if done.returncode != 0:
            raise MissingTool(f"Maven could not fetch Kafka {KAFKA_VERSION}:\n{(done.stdout + done.stderr)[-3000:]}")
    return KAFKA_VERSION


def java_argv(java: Java, root: Path, *flags: str) -> list[str]:
    """``java`` with Kafka's class path, in one fixed order: an archive of classes is valid for exactly one."""
    return [
        str(java.program),
        *flags,
        "-Djava.awt.headless=true",
        "-XX:-UsePerfData",
        f"-Dlog4j2.configurationFile={root / 'log4j2.properties'}",
        "-cp",
        ":".join(str(jar) for jar in sorted((root / "libs").glob("*.jar"))),
    ]


def new_id() -> str:
    """A random id as Kafka writes them: 16 bytes, base64 for URLs, unpadded; never one that looks like an option."""
    while (made := urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")).startswith("-"):
        pass
    return made


def format_storage(java: Java, root: Path, configuration: Path) -> None:
    """Make the storage that ``configuration`` names, which takes a second of Java. Raises KafkaUnavailable."""
    argv = java_argv(java, root, "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-Xmx128m")
    argv += ["kafka.tools.StorageTool", "format", "-t", new_id(), "-c", str(configuration)]
    try:
        done = subprocess.run(
            argv, env={**os.environ, **java.env}, capture_output=True, text=True, timeout=TOOL_TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired as expired:
        raise KafkaUnavailable(f"Kafka's storage was not formatted in {TOOL_TIMEOUT_S:g} s") from expired
    if done.returncode != 0:
        raise KafkaUnavailable(f"Kafka's storage could not be formatted:\n{(done.stdout + done.stderr)[-3000:]}")


def copy_storage(formatted: Path, data_dir: Path) -> None:
    """A new storage from one that was formatted before, under new ids: another cluster."""
    shutil.copytree(formatted, data_dir)
    meta = data_dir / "meta.properties"
    meta.write_text(with_new_ids(meta.read_text(encoding="utf-8")), encoding="utf-8")


def with_new_ids(properties: str) -> str:
    """The text of a ``meta.properties`` with a new cluster and directory id."""
    return re.sub(r"(?m)^(cluster\.id|directory\.id)=.*$", lambda line: f"{line[1]}={new_id()}", properties)


def node_properties(data_dir: Path, port: int, controller_port: int) -> dict[str, str | int | bool]:
    """One node that is broker and controller, with every internal topic small and on one replica."""
    return {
        "process.roles": "broker,controller",
        "node.id": 1,
        # Static voters, because the other way writes the controller's port into the storage.
        "controller.quorum.voters": f"1@127.0.0.1:{controller_port}",
        "listeners": f"PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller_port}",
        "controller.listener.names": "CONTROLLER",
        "log.dirs": str(data_dir),
        # A killed broker is let in again only when its former session has run out: 9 s by default.
        "broker.session.timeout.ms": 2000,
        "broker.heartbeat.interval.ms": 250,
        "group.initial.rebalance.delay.ms": 0,
        "offsets.topic.replication.factor": 1,
        "offsets.topic.num.partitions": 5,
        "transaction.state.log.replication.factor": 1,
        "transaction.state.log.min.isr": 1,
        "transaction.state.log.num.partitions": 5,
        "share.coordinator.state.topic.replication.factor": 1,
        "share.coordinator.state.topic.min.isr": 1,
    }


def write_properties(path: Path, properties: Mapping[str, str | int | bool]) -> None:
    """A Java properties file. Backslashes begin escapes there, so they are doubled."""
    lines = [
        f"{name}={str(value).lower() if isinstance(value, bool) else str(value)}".replace("\\", "\\\\")
        for name, value in properties.items()
    ]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
