"""The application in miniature: several writers, each with conversations of its own, in transactions of many sizes.

Every message is written twice in one transaction: into ``demo_messages``, which stands for the application's own data,
and into the outbox. Some transactions are rolled back after that. So the database itself knows what was promised.
"""

from __future__ import annotations

import random
import time
from dataclasses import dataclass, field
from threading import Condition, Event, Thread

from sqlalchemy import Connection, Engine, text
from sqlalchemy.exc import DBAPIError

from cdc_relay.outbox.database import is_contention, translate
from cdc_relay.outbox.enqueue import enqueue

TOPIC = "chat-history"

_MESSAGES = (
    "CREATE TABLE demo_messages (outbox_id BIGINT PRIMARY KEY, chat_id VARCHAR(36) NOT NULL, seq INT NOT NULL, "
    "body MEDIUMTEXT NOT NULL, KEY (chat_id, seq)) ENGINE=InnoDB CHARSET=utf8mb4"
)
_INSERT_MESSAGE = text("INSERT INTO demo_messages (outbox_id, chat_id, seq, body) VALUES (:id, :chat_id, :seq, :body)")

#: Rows of a transaction; most are small, as those of a chat are.
_SIZES = (1, 1, 1, 1, 1, 2, 2, 3, 5, 10, 25, 100)
_ROLLED_BACK = 0.08
_LONG_MESSAGE = 0.005
_LONG_CHARACTERS = 8_000
_WORDS = (
    "hello",
    "你好，世界",
    "naïve café",
    "🙂🚀",
    'she said "no"',
    "it's",
    "back\\slash",
    "line\nbreak",
    "<b>&amp;",
    "ok",
)


@dataclass
class Pace:
    """How fast the writers may go: ``rate`` rows a second (0: any), and never more than ``max_open`` rows ahead."""

    rate: float
    max_open: int
    _began: float | None = None
    _written: int = 0
    _done: int = 0
    _changed: Condition = field(default_factory=Condition)

    def wait(self, rows: int, stop: Event) -> None:
        """Wait until ``rows`` more may be written, or ``stop``."""
        with self._changed:
            if self._began is None:
                self._began = time.monotonic()
            while not stop.is_set() and self._written - self._done + rows > self.max_open:
                self._changed.wait(0.2)
            self._written += rows
            due_at = self._began + self._written / self.rate if self.rate else 0.0
        stop.wait(max(0.0, due_at - time.monotonic()))

    def give_back(self, rows: int) -> None:
        """They were rolled back."""
        with self._changed:
            self._written -= rows
            self._changed.notify_all()

    def done(self, rows: int) -> None:
        """So many rows in all have gone the whole way."""
        with self._changed:
            self._done = rows
            self._changed.notify_all()


class Application:
    """``writers`` threads that commit exactly ``rows`` messages together."""

    def __init__(self, engine: Engine, *, rows: int, conversations: int, writers: int, pace: Pace) -> None:
        self._engine = engine
        self._rows = rows
        self._pace = pace
        self._stop = Event()
        self._chats = [(1000 + n % 97, f"demo-{n:06d}") for n in range(conversations)]
        writers = min(writers, conversations)
        quotas = [rows // writers + (n < rows % writers) for n in range(writers)]
        self._threads = [
            Thread(target=self._run, args=(n, quotas[n], self._chats[n::writers]), name=f"writer-{n}", daemon=True)
            for n in range(writers)
        ]
        self.committed_at: dict[int, float] = {}
        """When COMMIT returned, in seconds since 1970, by outbox id."""
        self.rolled_back_rows = 0
        self.failure: BaseException | None = None
        """Why a writer ended early."""

    def prepare(self) -> None:
        """Make ``demo_messages`` and the conversations."""
        with self._engine.begin() as connection:
            connection.execute(text(_MESSAGES))
            for user_id, chat_id in self._chats:
                values = {"user_id": user_id, "chat_id": chat_id}
                connection.execute(
                    text("INSERT INTO agent_chats (user_id, chat_id) VALUES (:user_id, :chat_id)"), values
                )

    def start(self) -> None:
        """Let the writers write."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """End them early."""
        self._stop.set()
        for thread in self._threads:
            if thread.ident is not None:
                thread.join()

    @property
    def is_writing(self) -> bool:
        """Whether more will come."""
        return any(thread.is_alive() for thread in self._threads)

    def _run(self, number: int, quota: int, chats: list[tuple[int, str]]) -> None:
        try:
            self._write(random.Random(number), quota, chats)
        except Exception as error:  # noqa: BLE001  # shown by whoever started us
            self.failure = self.failure or (translate(error) if isinstance(error, DBAPIError) else error)
            self._stop.set()

    def _write(self, chance: random.Random, quota: int, chats: list[tuple[int, str]]) -> None:
        next_seq = dict.fromkeys(chats, 0)
        with self._engine.connect() as connection:
            while quota and not self._stop.is_set():
                size = min(chance.choice(_SIZES), quota)
                self._pace.wait(size, self._stop)
                of = [chance.choice(chats) for _ in range(chance.randint(1, 3))]
                seqs = dict(next_seq)
                keep = chance.random() >= _ROLLED_BACK
                try:
                    ids = [self._message(connection, chance, chance.choice(of), seqs, keep) for _ in range(size)]
                    if keep:
                        connection.commit()
                        at = time.time()
                except DBAPIError as error:
                    if not is_contention(error):
                        raise
                    keep = False
                if keep:
                    self.committed_at.update(dict.fromkeys(ids, at))
                    next_seq, quota = seqs, quota - size
                else:
                    connection.rollback()
                    self.rolled_back_rows += size
                    self._pace.give_back(size)

    def _message(
        self,
        connection: Connection,
        chance: random.Random,
        chat: tuple[int, str],
        seqs: dict[tuple[int, str], int],
        keep: bool,
    ) -> int:
        user_id, chat_id = chat
        seq = seqs[chat]
        seqs[chat] += 1
        words = " ".join(chance.choices(_WORDS, k=chance.randint(2, 40)))
        body = f"{chat_id}#{seq}{'' if keep else ' never committed'}: {words}"
        if chance.random() < _LONG_MESSAGE:
            body += "长" * _LONG_CHARACTERS
        role = "user" if seq % 2 == 0 else "assistant"
        outbox_id = enqueue(
            connection,
            biz_type="chat_history_persist",
            topic=TOPIC,
            message_key=chat_id,
            payload={"user_id": user_id, "conversation_id": chat_id, "role": role, "message": body},
        )
        connection.execute(_INSERT_MESSAGE, {"id": outbox_id, "chat_id": chat_id, "seq": seq, "body": body})
        return outbox_id
