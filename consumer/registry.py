"""Which handler has the effect of which ``biz_type``."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

from cdc_relay.errors import PoisonRow, RelayError, RetryableRow, RowError
from cdc_relay.logs import OncePerKind, get_logger
from consumer.unit_of_work import DATABASE_ERRORS, UnitOfWork

P = TypeVar("P")

_troubles = OncePerKind(get_logger(__name__), every_s=60.0)


class MessageRow(Protocol):
    """What a handler may know of an outbox row, which is locked."""

    @property
    def id(self) -> int: ...
    @property
    def created_at(self) -> datetime | None:
        """When the message was written: naive, in ``database.timezone``."""


class Event(NamedTuple, Generic[P]):
    """A message to be applied: its outbox row, and its payload as the handler has read it."""

    row: MessageRow
    payload: P


class Refused(RelayError):
    """A handler cannot apply some of the events that it was given; the transaction is rolled back.

    ``reasons`` has for each such outbox id why: RetryableRow if it may go well later, PoisonRow if it never can.
    """

    def __init__(self, reasons: Mapping[int, RowError]) -> None:
        super().__init__(f"{len(reasons)} events were refused")
        self.reasons = reasons


@dataclass(frozen=True)
class Handler(Generic[P]):
    """The effect of one ``biz_type``: two plain functions, and a third that looks before the start.

    Example, a message that only counts: ``Handler("ping", read=int, apply=lambda work, events: …, check=…)``.
    """

    biz_type: str
    read: Callable[[Any], P]
    """The payload from parsed JSON; raises PoisonRow that names the field and the value it must have. No I/O."""
    apply: Callable[[UnitOfWork, Sequence[Event[P]]], None]
    """The effect of these events, in this order, in the transaction of ``work``, which it neither commits nor rolls
    back. Called with all events of its type in a batch, so that they cost few statements; raises ``Refused`` for those
    that it cannot apply, or RowError when it cannot tell which. Whatever it raises, nothing of the batch is kept."""
    check: Callable[[UnitOfWork], None]
    """Raises DatabaseError when what ``apply`` needs is missing: tables, columns, privileges. Changes nothing."""


class HandlerRegistry:
    """The handlers by ``biz_type``; fixed once it is made."""

    def __init__(self, handlers: Iterable[Handler[Any]]) -> None:
        self._handlers: dict[str, Handler[Any]] = {}
        for handler in handlers:
            if handler.biz_type in self._handlers:
                raise ValueError(f"two handlers for biz_type {handler.biz_type!r}")
            self._handlers[handler.biz_type] = handler

    def __iter__(self) -> Iterator[Handler[Any]]:
        return iter(self._handlers.values())

    def read(self, biz_type: str, payload: Any) -> Any:
        """The payload as its handler wants it; raises PoisonRow, also where the handler itself fails."""
        handler = self._handlers.get(biz_type)
        if handler is None:
            known = ", ".join(sorted(self._handlers)) or "none"
            raise PoisonRow(f"no handler for biz_type {biz_type!r:.80}; this consumer handles: {known}")
        try:
            return handler.read(payload)
        except PoisonRow:
            raise
        except Exception as defect:  # it would end the program at each start, and with it everyone else's rows
            raise PoisonRow(_told(biz_type, defect)) from defect

    def apply(self, work: UnitOfWork, biz_type: str, events: Sequence[Event[Any]]) -> None:
        """The effect of ``events``, all of one type; raises what ``Handler.apply`` may.

        A defect of the handler is a RetryableRow: it costs the rows that it fails on, and a mended handler cures it.
        """
        try:
            self._handlers[biz_type].apply(work, events)
        except (RelayError, *DATABASE_ERRORS):
            raise
        except Exception as defect:
            _troubles.error(biz_type, _told(biz_type, defect), action="handler_failed", exc_info=True)
            raise RetryableRow(_told(biz_type, defect)) from defect


def _told(biz_type: str, defect: Exception) -> str:
    return f"the handler of {biz_type!r} failed: {type(defect).__name__}: {defect}"
