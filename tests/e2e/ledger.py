"""What the application knows it has promised, kept outside the database that is being judged.

Each writer owns conversations of its own, so it knows the commit order of each of them. A message's text says which
attempt it belongs to: whatever comes out at the far end with a text that no commit stands behind was invented.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta, tzinfo
from hashlib import blake2b
from threading import Event, Lock, Thread
from typing import Any, NamedTuple

import pymysql
from sqlalchemy import make_url

BIZ_TYPE = "chat_history_persist"

#: Rows of a transaction: mostly few, as a chat's are.
SIZES = (1, 1, 1, 1, 2, 2, 3, 5, 8, 20, 60)
ROLLED_BACK = 0.1
WORDS = (
    "hello",
    "你好，世界",
    "naïve café",
    "🙂🚀👩‍👧",
    'she said "no"',
    "it's",
    "back\\slash",
    "line\nbreak\r\n\ttab",
    "<b>&amp;",
)

_INSERT = (
    "INSERT INTO agent_outbox_messages (biz_type, topic, message_key, payload, status, retry_count, max_retry, "
    "next_retry_at, created_at, updated_at) VALUES "
)
_VALUES = "(%s, %s, %s, %s, 'pending', 0, %s, %s, %s, %s)"

#: ER_DUP_ENTRY and its like never happen to these statements; what does is contention, and then nothing was committed.
_CONTENDED = (1205, 1213)


class Written(NamedTuple):
    """A message that was committed."""

    row_id: int
    key: str
    seq: int
    """Its number in its conversation, from 0, in commit order."""
    payload: bytes
    """Digest of the payload as it was written."""
    message: bytes
    """Digest of the text in it."""


def digest(content: bytes | str) -> bytes:
    """Short, and for all that is done here unique."""
    return blake2b(content.encode() if isinstance(content, str) else content, digest_size=12).digest()


class Ledger:
    """Safe for threads."""

    def __init__(self) -> None:
        self._lock = Lock()
        self.committed: dict[int, Written] = {}
        self.rolled_back: set[bytes] = set()
        """Digests of the texts that must never be seen."""
        self.ambiguous = 0
        """Commits whose answer was lost; each was resolved by looking."""
        self.dead: set[int] = set()
        """Rows that cannot be delivered, by the test's own intention."""

    def __len__(self) -> int:
        return len(self.committed)

    def keep(self, rows: Iterable[Written]) -> None:
        with self._lock:
            for row in rows:
                assert row.row_id not in self.committed, f"the server gave id {row.row_id} twice"
                self.committed[row.row_id] = row

    def drop(self, rows: Iterable[Written]) -> None:
        with self._lock:
            self.rolled_back |= {row.message for row in rows}


def encode_payload(user_id: int, key: str, message: str) -> str:
    """As a Go program would: UTF-8 as it is, and three characters escaped for the sake of HTML."""
    values = {"user_id": user_id, "conversation_id": key, "role": "user", "message": message}
    text = json.dumps(values, ensure_ascii=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


@dataclass
class Plan:
    """What writers do."""

    topic: str
    rows: int | None = None
    """How many rows all writers commit together; None: until they are stopped."""
    writers: int = 4
    conversations: int = 20
    seed: int = 1
    pause_s: tuple[float, float] = (0.0, 0.0)
    """Between two transactions, at random between these."""
    large: int = 0
    """How many of the messages are 1 MB long."""
    misdirected: int = 0
    """How many rows name a topic that there is not: ``topic`` with ``misdirected_to`` after it."""
    misdirected_to: str = ".missing"
    max_retry: int = 20
    clock_ahead_s: float = 0.0
    """How far the application's clock is ahead of the true time."""
    zone: tzinfo = UTC
    """In which the application writes its times."""
    sizes: Sequence[int] = SIZES
    chats: list[tuple[int, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.chats = self.chats or [(100 + n, f"chat-{self.seed}-{n:05d}") for n in range(self.conversations)]


class Writers:
    """``plan.writers`` threads; ends of theirs are raised by ``join`` and ``stop``."""

    def __init__(self, url: str, ledger: Ledger, plan: Plan) -> None:
        self._stop = Event()
        self._failures: list[BaseException] = []
        quota = [None if plan.rows is None else _share(plan.rows, n, plan.writers) for n in range(plan.writers)]
        self._writers = [
            _Writer(url, ledger, plan, number=n, quota=quota[n], stop=self._stop) for n in range(plan.writers)
        ]
        self._threads = [Thread(target=self._run, args=(w,), daemon=True, name="writer") for w in self._writers]

    def start(self) -> Writers:
        for thread in self._threads:
            thread.start()
        return self

    @property
    def are_writing(self) -> bool:
        return any(thread.is_alive() for thread in self._threads)

    def misdirect(self, rows: int) -> None:
        """Let so many of the rows to come name a topic that there is not."""
        for number, writer in enumerate(self._writers):
            writer.misdirected_left += _share(rows, number, len(self._writers))

    def join(self, patience_s: float = 240.0) -> None:
        """Wait until they have written their rows."""
        deadline = time.monotonic() + patience_s
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        is_late = self.are_writing
        self.stop()
        assert not is_late, f"the writers were not done after {patience_s:g} s"

    def stop(self) -> None:
        """Let each finish its transaction. Safe to call twice."""
        self._stop.set()
        for thread in self._threads:
            thread.join(60)
        if self._failures:
            raise self._failures[0]

    def _run(self, writer: _Writer) -> None:
        try:
            writer.run()
        except BaseException as error:  # noqa: BLE001  # raised by join and stop
            self._failures.append(error)
            self._stop.set()


def _share(total: int, number: int, of: int) -> int:
    return total // of + (number < total % of)


class _Writer:
    """One connection of the application, and a new one after each loss."""

    def __init__(self, url: str, ledger: Ledger, plan: Plan, *, number: int, quota: int | None, stop: Event) -> None:
        self._url = make_url(url)
        self._ledger = ledger
        self._plan = plan
        self._quota = quota
        self._stop = stop
        self._chats = plan.chats[number :: plan.writers]
        self._chance = random.Random(f"{plan.seed}/{number}")
        self._next_seq: dict[str, int] = {}
        self._large_left = _share(plan.large, number, plan.writers)
        self.misdirected_left = _share(plan.misdirected, number, plan.writers)
        self._attempt = 0
        self._connection: Any = None

    def run(self) -> None:
        written = 0
        try:
            while not self._stop.is_set() and (self._quota is None or written < self._quota):
                size = self._chance.choice(self._plan.sizes)
                if self._quota is not None:
                    size = min(size, self._quota - written)
                written += self._transact(size, keep=self._chance.random() >= ROLLED_BACK)
                self._stop.wait(self._chance.uniform(*self._plan.pause_s))
        finally:
            if self._connection is not None:
                self._connection.close()

    def _transact(self, size: int, *, keep: bool) -> int:
        """One transaction; how many rows it has committed."""
        self._attempt += 1
        rows: list[Written] = []
        payloads: list[tuple[int, str]] = []
        seqs = dict(self._next_seq)
        of = self._chance.sample(self._chats, min(len(self._chats), self._chance.randint(1, 3)))
        drafts = [self._draft(self._chance.choice(of), seqs, keep) for _ in range(size)]
        try:
            with self._cursor() as cursor:
                while drafts:
                    some = [drafts.pop(0) for _ in range(min(len(drafts), self._chance.randint(1, 7)))]
                    self._insert(cursor, some, rows, payloads)
            if not keep:
                self._connection.rollback()
                self._ledger.drop(rows)
                return 0
        except pymysql.MySQLError:
            # No COMMIT was sent, so there was none. Rows that were on their way count as rolled back too.
            self._ledger.drop(rows)
            self._give_up()
            return 0
        try:
            self._connection.commit()
        except pymysql.MySQLError:
            if not self._was_committed(rows):
                self._ledger.drop(rows)
                return 0
        self._next_seq = seqs
        self._ledger.keep(rows)
        return size

    def _draft(self, chat: tuple[int, str], seqs: dict[str, int], keep: bool) -> tuple[int, str, int, str]:
        user_id, key = chat
        seq = seqs.get(key, 0)
        seqs[key] = seq + 1
        words = " ".join(self._chance.choices(WORDS, k=self._chance.randint(1, 30)))
        message = f"{key}#{seq} attempt {self._attempt}{'' if keep else ' to be rolled back'}: {words}"
        if self._large_left and keep and self._chance.random() < 0.02:
            self._large_left -= 1
            message += "长🙂" * (1_000_000 // 7)
        return user_id, key, seq, message

    def _insert(
        self, cursor: Any, drafts: list[tuple[int, str, int, str]], rows: list[Written], payloads: list[Any]
    ) -> None:
        """One INSERT of all ``drafts``: their ids follow one another (MySQL manual, "InnoDB AUTO_INCREMENT")."""
        instant = datetime.now(UTC) + timedelta(seconds=self._plan.clock_ahead_s)
        now = instant.astimezone(self._plan.zone).replace(tzinfo=None)
        values: list[Any] = []
        written = []
        for user_id, key, seq, message in drafts:
            payload = encode_payload(user_id, key, message)
            topic = self._plan.topic
            if self.misdirected_left and seq > 2:
                self.misdirected_left -= 1
                topic += self._plan.misdirected_to
            values += [BIZ_TYPE, topic, key, payload, self._plan.max_retry, now, now, now]
            written.append(Written(0, key, seq, digest(payload), digest(message)))
        try:
            cursor.execute(_INSERT + ", ".join([_VALUES] * len(drafts)), values)
        except pymysql.MySQLError:
            self._ledger.drop(written)
            raise
        first = int(cursor.lastrowid)
        rows += [row._replace(row_id=first + n) for n, row in enumerate(written)]

    def _cursor(self) -> Any:
        """On the connection, or on a new one as soon as there is a server that takes writers."""
        while self._connection is None:
            try:
                self._connection = self._connect()
            except pymysql.MySQLError:
                if self._stop.wait(0.1):
                    raise
        return self._connection.cursor()

    def _connect(self) -> Any:
        return pymysql.connect(
            host=self._url.host,
            port=self._url.port or 3306,
            user=self._url.username,
            database=self._url.database,
            charset="utf8mb4",
            connect_timeout=5,
            read_timeout=30,
            write_timeout=30,
        )

    def _give_up(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection._force_close()

    def _was_committed(self, rows: Sequence[Written]) -> bool:
        """The answer to COMMIT was lost or was an error: look, once the old connection can do nothing more."""
        self._ledger.ambiguous += 1
        old = self._connection.thread_id()
        self._give_up()
        deadline = time.monotonic() + 120
        while True:
            try:
                connection = self._connect()
                try:
                    return _look(connection, old, rows)
                finally:
                    connection._force_close()
            except pymysql.MySQLError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.1)


def _look(connection: Any, old_thread: int, rows: Sequence[Written]) -> bool:
    expected: Mapping[int, bytes] = {row.row_id: row.payload for row in rows}
    with connection.cursor() as cursor:
        try:
            cursor.execute(f"KILL {old_thread}")
        except pymysql.MySQLError as error:
            if error.args[0] != 1094:  # no such thread (any more)
                raise
        marks = ", ".join(["%s"] * len(expected))
        # A shared lock waits for the old transaction to end, whichever way.
        cursor.execute(
            f"SELECT id, payload FROM agent_outbox_messages WHERE id IN ({marks}) LOCK IN SHARE MODE", list(expected)
        )
        found = {int(row_id): digest(payload) for row_id, payload in cursor.fetchall()}
    connection.rollback()
    there = {row_id for row_id, payload in found.items() if expected[row_id] == payload}
    assert not there or there == expected.keys(), f"the server kept a part of a transaction: {there}"
    return bool(there)
