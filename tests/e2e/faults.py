"""``make faults``: a random mix of all faults while writers write, then the verdict. Exit code 1 on any violation.

``FAULTS_SEED`` (printed when it was not given) repeats the choice of faults, of the reader and of the write-back mode;
``FAULTS_MINUTES`` says for how long. It begins with five SIGKILLs a minute, all in a row.
"""

from __future__ import annotations

import os
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pymysql
from sqlalchemy.exc import DBAPIError

from cdc_relay.acknowledged import AcknowledgedFile
from cdc_relay.embedded.kafka import KafkaBroker
from cdc_relay.embedded.mysql import MysqlServer
from tests.e2e.ledger import Writers
from tests.e2e.programs import Program
from tests.e2e.proxy import Proxy
from tests.e2e.stack import Stack, stack_on
from tests.e2e.verdict import Verdict

IN_FLIGHT = 2_000
KILLS_A_MINUTE = 5
READERS = ("wire", "library")
MODES = ("status", "lazy", "none")


class World:
    """Servers of our own, both behind proxies, two relays, one consumer, and what can go wrong with them."""

    def __init__(
        self, stack: Stack, other: Program, mysql: MysqlServer, kafka: KafkaBroker, proxies: list[Proxy]
    ) -> None:
        self._stack = stack
        self._other = other
        self._mysql = mysql
        self._kafka = kafka
        self._proxies = proxies
        self.writers: Writers | None = None
        self.faults: dict[str, Callable[[random.Random], None]] = {
            "SIGKILL of a relay": self._kill_a_relay,
            "SIGKILL of the consumer": lambda _: self._again(stack.consumer),
            "SIGKILL of all programs": lambda _: self._kill_all(),
            "SIGTERM of a relay": self._stop_a_relay,
            "a relay freezes": self._freeze_a_relay,
            "KILL of every connection": lambda _: self._kill_connections(),
            "SIGKILL of mysqld": lambda chance: self._bounce(mysql, chance),
            "SIGKILL of Kafka": lambda chance: self._bounce(kafka, chance),
            "mysqld freezes": lambda chance: self._freeze(mysql, chance),
            "Kafka freezes": lambda chance: self._freeze(kafka, chance),
            "FLUSH and PURGE BINARY LOGS": lambda _: self._purge(),
            "RESET BINARY LOGS": lambda _: self._sql("RESET BINARY LOGS AND GTIDS"),
            "read-only": self._read_only,
            "connections reset": lambda _: self._reset(),
            "connections silent for ever": self._silence,
            "latency": self._delay,
            "network cut": self._cut,
            "checkpoints removed": lambda _: shutil.rmtree(stack.checkpoint.parent, ignore_errors=True),
            "checkpoint damaged": self._damage,
            "rows of a missing topic": lambda _: self._misdirect(),
            "rows before their chats": lambda _: self._hide_chats(),
            "what could not be delivered is mended": lambda _: self.mend(),
        }

    def kill_in_a_row(self, chance: random.Random, times: int) -> None:
        """SIGKILL the active relay or any other, the consumer, or all of them, and again before they have settled."""
        kinds = ("SIGKILL of a relay", "SIGKILL of the consumer", "SIGKILL of all programs")
        for _ in range(times):
            self.faults[chance.choice(kinds)](chance)
            time.sleep(chance.uniform(0.1, 1.5))

    def mend(self) -> None:
        """As an operator would: every row names the right topic, every chat is there."""
        self._sql(
            f"UPDATE agent_outbox_messages SET topic = '{self._stack.topic}' WHERE topic <> '{self._stack.topic}'"
        )
        self._sql("UPDATE agent_chats SET user_id = ABS(user_id) WHERE user_id < 0")

    def _misdirect(self) -> None:
        if self.writers is not None:
            self.writers.misdirect(8)

    def _hide_chats(self) -> None:
        # As good as not there: a chat is found by both of its ids.
        self._sql("UPDATE agent_chats SET user_id = -user_id WHERE user_id > 0 ORDER BY RAND() LIMIT 4")

    def _relay(self, chance: random.Random) -> Program:
        return chance.choice((self._stack.relay, self._other))

    def _kill_a_relay(self, chance: random.Random) -> None:
        self._again(self._relay(chance))

    def _kill_all(self) -> None:
        for program in (self._stack.relay, self._other, self._stack.consumer):
            self._again(program)

    def _reset(self) -> None:
        for proxy in self._proxies:
            proxy.reset()

    def _again(self, program: Program) -> None:
        program.kill()
        start(program)

    def _stop_a_relay(self, chance: random.Random) -> None:
        relay = self._relay(chance)
        relay.stop()
        start(relay)

    def _freeze_a_relay(self, chance: random.Random) -> None:
        relay = self._relay(chance)
        if relay.is_running:
            relay.freeze()
            time.sleep(chance.uniform(1, 25))
            relay.thaw()

    def _kill_connections(self) -> None:
        with self._stack.engine.connect() as connection:
            ours = connection.exec_driver_sql("SELECT CONNECTION_ID()").scalar()
            for row in connection.exec_driver_sql("SHOW PROCESSLIST").mappings().all():
                if row["User"] in ("root", "programs") and row["Id"] != ours:
                    try:
                        connection.exec_driver_sql(f"KILL {row['Id']}")
                    except DBAPIError:
                        pass  # it has ended meanwhile

    def _bounce(self, server: MysqlServer | KafkaBroker, chance: random.Random) -> None:
        server.kill()
        time.sleep(chance.uniform(0, 5))
        server.start()

    def _freeze(self, server: MysqlServer | KafkaBroker, chance: random.Random) -> None:
        server.freeze()
        try:
            time.sleep(chance.uniform(1, 25))
        finally:
            server.thaw()

    def _purge(self) -> None:
        self._sql("FLUSH BINARY LOGS")
        newest = self._stack.sql("SHOW BINARY LOGS")[-1][0]
        self._sql(f"PURGE BINARY LOGS TO '{newest}'")

    def _read_only(self, chance: random.Random) -> None:
        self._sql("SET GLOBAL super_read_only = ON")
        time.sleep(chance.uniform(0.5, 5))
        self._sql("SET GLOBAL super_read_only = OFF")
        self._sql("SET GLOBAL read_only = OFF")

    def _silence(self, chance: random.Random) -> None:
        up, down = chance.choice(((True, True), (True, False), (False, True)))
        chance.choice(self._proxies).silence(up=up, down=down)

    def _delay(self, chance: random.Random) -> None:
        proxy = chance.choice(self._proxies)
        proxy.delay(chance.uniform(0.05, 0.5))
        time.sleep(chance.uniform(1, 8))
        proxy.heal()

    def _cut(self, chance: random.Random) -> None:
        proxy = chance.choice(self._proxies)
        proxy.cut()
        time.sleep(chance.uniform(0.5, 8))
        proxy.heal()

    def _damage(self, chance: random.Random) -> None:
        for relay in (self._stack.relay, self._other):
            relay.kill()
            checkpoint = Path(relay.settings["CDC_CHECKPOINT__PATH"])
            for path in (checkpoint, AcknowledgedFile.beside(checkpoint).path):
                raw = bytearray(path.read_bytes() if path.exists() else b"")
                if raw:
                    raw[chance.randrange(len(raw))] ^= 1 << chance.randrange(8)
                    path.write_bytes(raw[: chance.choice((len(raw), len(raw) // 2))])
            start(relay)

    def _sql(self, statement: str) -> None:
        try:
            self._stack.sql(statement)
        except DBAPIError as error:  # a deadlock with what else goes on; the next fault follows
            say(f"  {statement}: {error.orig}")

    def revive(self) -> None:
        """Start what has ended by itself, as a supervisor would. What it said is kept in its log."""
        for program in (self._stack.relay, self._other, self._stack.consumer):
            if not program.is_running:
                say(f"  {program.name} had ended; started again. It said:\n{program.log_tail(5)}")
                start(program)


def start(program: Program) -> None:
    program.start(wait=False)


def say(text: str) -> None:
    print(text, flush=True)


def run(seed: int, minutes: float) -> Verdict:
    """Mix faults for so long; the verdict."""
    chance = random.Random(seed)
    reader, mode = chance.choice(READERS), chance.choice(MODES)
    say(f"tail.reader = {reader}, writeback.mode = {mode}")
    happened: Counter[str] = Counter()
    with ExitStack() as closing:
        folder = Path(closing.enter_context(tempfile.TemporaryDirectory(prefix="cdc-relay-faults-")))
        mysql = closing.enter_context(MysqlServer(flavour="mysql"))
        kafka_proxy = closing.enter_context(Proxy(0))
        options: dict[str, str | int | bool] = {
            "advertised.listeners": f"PLAINTEXT://127.0.0.1:{kafka_proxy.port}",
            "auto.create.topics.enable": False,
        }
        kafka = closing.enter_context(KafkaBroker(options=options))
        kafka_proxy.retarget(kafka.port)
        mysql_proxy = closing.enter_context(Proxy(mysql.port))
        stack = closing.enter_context(
            stack_on(
                mysql,
                f"127.0.0.1:{kafka_proxy.port}",
                folder,
                through=mysql_proxy.port,
                tail__max_in_flight_rows=IN_FLIGHT,
                tail__reader=reader,
                writeback__mode=mode,
                retry__cap_s=5,
            )
        )
        other = closing.enter_context(
            stack.new_relay("other", CDC_CHECKPOINT__PATH=str(folder / "other" / "relay.json"))
        )
        world = World(stack, other, mysql, kafka, [mysql_proxy, kafka_proxy])
        stack.start()
        other.start()
        writers = stack.write(conversations=200, writers=4, pause_s=(0.0, 0.05), seed=seed, max_retry=10_000)
        world.writers = writers
        kills = round(KILLS_A_MINUTE * minutes)
        say(f"{time.strftime('%H:%M:%S')} {kills} SIGKILLs in a row")
        until = time.monotonic() + 60 * minutes
        try:
            world.kill_in_a_row(chance, kills)
            world.revive()
            while time.monotonic() < until:
                time.sleep(chance.uniform(0.2, 6))
                name = chance.choice(list(world.faults))
                say(f"{time.strftime('%H:%M:%S')} {name} ({len(stack.ledger)} rows committed)")
                happened[name] += 1
                world.faults[name](chance)
                world.revive()
        finally:
            writers.stop()
        for proxy in (mysql_proxy, kafka_proxy):
            proxy.heal()
        began = time.monotonic()
        while True:  # a program may still end over what was the last fault
            world.revive()
            world.mend()
            try:
                verdict = stack.verdict(patience_s=180)
                break
            except (AssertionError, DBAPIError, pymysql.MySQLError) as error:
                if time.monotonic() - began > 300:
                    raise
                say(f"  not settled yet: {str(error).splitlines()[0][:200]}")
        say(f"\n{sum(happened.values())} faults: " + ", ".join(f"{name} {n}" for name, n in happened.most_common()))
        say(f"{stack.ledger.ambiguous} commits without an answer, {len(stack.ledger.rolled_back)} rows rolled back")
    return verdict


def table(verdict: Verdict) -> str:
    rows = {
        "rows committed": verdict.rows,
        "lost": verdict.lost,
        "invented": verdict.invented,
        "applied twice": verdict.applied_twice,
        "out of order": verdict.out_of_order,
        "wrong counts": verdict.wrong_counts,
        "duplicated in Kafka (allowed)": verdict.duplicated_in_kafka,
        "recovered in seconds": round(verdict.recovered_in_s, 1),
    }
    return "\n".join(f"{name:32}{value:>12}" for name, value in rows.items())


def main() -> int:
    seed = int(os.environ.get("FAULTS_SEED") or random.randrange(10**6))
    minutes = float(os.environ.get("FAULTS_MINUTES") or 10)
    say(f"FAULTS_SEED={seed} FAULTS_MINUTES={minutes:g}")
    verdict = run(seed, minutes)
    say("\n" + table(verdict))
    for example in verdict.examples:
        say(example[:2000])
    return 1 if verdict.violations else 0


if __name__ == "__main__":
    sys.exit(main())
