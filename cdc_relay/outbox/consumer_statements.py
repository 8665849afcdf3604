"""The consumer's SQL statements on the outbox table, one method a statement. What holds for all of them: ``sql.py``."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime

from sqlalchemy import Connection, text

from cdc_relay.outbox.backoff import NextAttempt
from cdc_relay.outbox.sql import (
    DEAD,
    IS_DISCARDED,
    IS_HELD,
    PARKED,
    TableStatements,
    WaitingRow,
    as_wall,
    failure,
    listed,
    with_ids,
)


class ConsumerStatements(TableStatements):
    """What the consumer reads and writes."""

    def unsettled(self, connection: Connection, *, dead_too: bool = False) -> Iterator[WaitingRow]:
        """Every failed or parked row, waiting or on its way again, in no order: what a consumer must hold back when it
        is given partitions. ``dead_too`` as in ``held_rows``. Changes nothing."""
        on_its_way_again = "(retry_count > 0 OR COALESCE(last_error, '') <> '')"
        conditions = {"pending": IS_HELD, "published": on_its_way_again} | (DEAD if dead_too else {})
        yield from self._holding(connection, conditions)

    def still_open(
        self, connection: Connection, ids: Iterable[int], *, dead_too: bool = False
    ) -> dict[int, datetime | None]:
        """Those of these ids whose effect is still to come, with the time of their next attempt. Changes nothing.

        The time is None for a row that is on its way to the consumer: published, or leased and being sent. With
        ``dead_too`` also those that are dead and not let go, whose time is None as well.
        """
        dead = f" OR status = 'dead' AND NOT {IS_DISCARDED}" if dead_too else ""
        sql = (
            f"SELECT id, IF(status = 'pending' AND published_at IS NOT NULL, next_retry_at, NULL) FROM {self.table} "
            f"WHERE id IN :ids AND (status IN ('pending', 'published'){dead})"
        )
        return {int(row_id): as_wall(at) for row_id, at in connection.execute(with_ids(sql), {"ids": list(ids)})}

    def mark_consumed(self, connection: Connection, published: Mapping[int, datetime], now: datetime) -> int:
        """pending or published -> consumed, for rows locked in this transaction whose effect stands in it.

        ``published``: the rows by id, each with the time at which it was published if the relay has not said so yet.
        """
        return self._consume(connection, published, now, "status IN ('pending', 'published')")

    def consume_undecided(self, connection: Connection, published: Mapping[int, datetime], now: datetime) -> int:
        """pending or published -> consumed, for rows whose effect follows in this transaction; how many there were.

        Only those of ``published`` (see ``mark_consumed``) on which no consumer has decided since their last delivery.
        The caller rolls back unless that was all of them, since it cannot tell which.
        """
        undecided = "(status = 'published' OR status = 'pending' AND published_at IS NULL)"
        return self._consume(connection, published, now, undecided)

    def _consume(self, connection: Connection, published: Mapping[int, datetime], now: datetime, only: str) -> int:
        sql = (
            f"UPDATE {self.table} SET published_at = COALESCE(published_at, {_by_id(published)}), "
            f"consumed_at = %(now)s, last_error = {self._cleared(connection)}, next_retry_at = NULL, "
            f"updated_at = %(now)s, status = 'consumed' WHERE id IN ({listed(published)}) AND {only}"
        )
        return connection.exec_driver_sql(sql, {"now": now}).rowcount

    def mark_failed(self, connection: Connection, row_id: int, attempt: NextAttempt, reason: str, now: datetime) -> int:
        """pending or published -> pending or dead, by the consumer, for a row locked in this transaction."""
        sql = (
            f"UPDATE {self.table} SET retry_count = :attempts, next_retry_at = :at, last_error = :reason, "
            "published_at = COALESCE(published_at, :now), updated_at = :now, status = :status "
            "WHERE id = :id AND status IN ('pending', 'published')"
        )
        return connection.execute(text(sql), failure(row_id, attempt, reason, now)).rowcount

    def park(self, connection: Connection, ids: Sequence[int], behind: int, at: datetime, now: datetime) -> int:
        """pending or published -> pending, by the consumer, for locked rows that must wait for row ``behind``.

        ``retry_count`` stays: the rows themselves are not at fault.
        """
        sql = (
            f"UPDATE {self.table} SET next_retry_at = :at, last_error = :reason, "
            "published_at = COALESCE(published_at, :now), updated_at = :now, status = 'pending' "
            "WHERE id IN :ids AND status IN ('pending', 'published')"
        )
        values = {"ids": list(ids), "at": at, "now": now, "reason": f"{PARKED} (id {behind})"}
        return connection.execute(with_ids(sql), values).rowcount


def _by_id(times: Mapping[int, datetime]) -> str:
    """The time of the row that an UPDATE is at, as SQL.

    Rows that were sent together follow one another by id and have one time, so few times and the ids from which they
    hold are enough. INTERVAL() finds the place among constants by bisection; a CASE would try one after another.
    """
    since: list[tuple[int, datetime]] = []
    for row_id, at in sorted(times.items()):
        if not since or since[-1][1] != at:
            since.append((row_id, at))
    texts = [f"'{at}'" for _, at in since]
    if len(since) < 2:
        return "".join(texts) or "NULL"
    return f"ELT(INTERVAL(id, {listed(row_id for row_id, _ in since)}), {', '.join(texts)})"
