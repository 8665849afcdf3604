"""A throwaway Kafka: the real broker, on one KRaft node."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from confluent_kafka import Consumer, KafkaException, TopicPartition

from cdc_relay.embedded import cache, kafka_files
from cdc_relay.embedded.java import Java, find_java
from cdc_relay.embedded.mock_kafka import MockKafka
from cdc_relay.embedded.process import free_port
from cdc_relay.embedded.progress import step
from cdc_relay.embedded.server import ThrowawayServer
from cdc_relay.errors import KafkaUnavailable

__all__ = ["KafkaBroker", "MockKafka"]

#: A line of its log.
STARTED = "Kafka Server started"
#: Properties that a copied storage would contradict.
BAKED_IN = {"node.id", "process.roles", "log.dir", "log.dirs", "metadata.log.dir"}


class KafkaBroker(ThrowawayServer):
    """A real Apache Kafka, broker and controller in one process, gone after the ``with`` block::

        with KafkaBroker(options={"message.max.bytes": 2_000_000}) as broker:
            Producer({"bootstrap.servers": broker.bootstrap_servers})

    Topics are made on first use with one partition unless ``options`` say otherwise; replication factors are 1.
    Java 17 or later and Maven are the machine's own or fetched; the jars come once from Maven Central.
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
        self._java = Java(Path("java"), "")
        self._files = Path()
        self._warm = Path()
        self._controller_port = 0

    @property
    def bootstrap_servers(self) -> str:
        return f"{self.host}:{self.port}"

    def _choose_port(self) -> int:
        self._controller_port = free_port()
        return super()._choose_port()

    def _prepare(self, home: Path) -> None:
        self._java = find_java()
        self._files = kafka_files.fill_cache()
        self._warm = self._warm_folder()

    def _warm_folder(self) -> Path:
        return warm(self._java, self._files)

    def _argv(self) -> Sequence[str]:
        configuration = self.home / "server.properties"
        own = kafka_files.node_properties(self.data_dir, self.port, self._controller_port)
        kafka_files.write_properties(configuration, own | self.options)
        if not self.data_dir.exists():
            self._make_storage(configuration)
        speed = ["-Xms1g", "-Xmx1g"] if self.tuned else ["-Xmx512m", "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC"]
        flags = [*speed, *self._class_archive()]
        return [*kafka_files.java_argv(self._java, self._files, *flags), "kafka.Kafka", str(configuration)]

    def _class_archive(self) -> list[str]:
        archive = self._warm / "classes.jsa"
        return [f"-XX:SharedArchiveFile={archive}"] if archive.exists() else []

    def _make_storage(self, configuration: Path) -> None:
        if BAKED_IN & self.options.keys():
            with step(f"formatting the storage of Kafka {kafka_files.KAFKA_VERSION}"):
                kafka_files.format_storage(self._java, self._files, configuration)
        else:
            kafka_files.copy_storage(self._warm / "storage", self.data_dir)

    def _env(self) -> dict[str, str]:
        return {**super()._env(), **self._java.env}

    def _is_ready(self) -> bool:
        """Its port is bound some seconds before it serves; this line follows its registration with the controller."""
        if STARTED not in self._log_of_this_start():
            return False
        if not (self.data_dir / "__consumer_offsets-0").exists():
            make_offsets_topic(self.bootstrap_servers)
        return True


def make_offsets_topic(bootstrap_servers: str) -> None:
    """Ask for the offsets of any group, which makes the topic that holds groups. The first consumer would do so by
    joining, would be told that the coordinator is still loading, and would join again three seconds later.

    As a consumer does: where a coordinator that loads refuses the AdminClient, librdkafka 2.16 ends the process.
    """
    consumer = Consumer({"bootstrap.servers": bootstrap_servers, "group.id": "embedded-warm-up", "log_level": 0})
    try:
        consumer.committed([TopicPartition("embedded-warm-up", 0)], timeout=10)
    except KafkaException:
        pass  # a listener wants credentials, or the broker is slow; then the first consumer waits
    finally:
        consumer.close()


def warm(java: Java, files: Path) -> Path:
    """The folder with a formatted ``storage`` to copy and, where this Java can make one, ``classes.jsa``.

    Kept for each version of Java, since an archive of classes is valid for exactly one; others ignore it.
    """
    version = f"{kafka_files.KAFKA_VERSION}-java{java.version}"

    def build(part: Path) -> str:
        with step(f"starting Kafka {kafka_files.KAFKA_VERSION} once so that later starts are quick"):
            configuration = part / "server.properties"
            kafka_files.write_properties(configuration, kafka_files.node_properties(part / "storage", 1, 2))
            kafka_files.format_storage(java, files, configuration)
            try:
                with _Rehearsal(part) as rehearsal:
                    rehearsal.stop()
            except KafkaUnavailable:
                # Perhaps a Java that knows no such archives. If it is worse, the start without one will tell.
                (part / "classes.jsa").unlink(missing_ok=True)
        return version

    return cache.fill("kafka-warm", build, version=version)


class _Rehearsal(KafkaBroker):
    """A start that leaves an archive of the classes that it loaded, which halves every later start."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._folder = folder

    def _warm_folder(self) -> Path:
        return self._folder

    def _class_archive(self) -> list[str]:
        return [f"-XX:ArchiveClassesAtExit={self._folder / 'classes.jsa'}"]
