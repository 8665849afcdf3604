"""Splitting the bytes of a MySQL connection into packets (MySQL Internals, "MySQL Packets").

A packet is three bytes of length, one of sequence number, and the payload; a payload of 16 MiB - 1 goes on in the next.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

_HEADER_SIZE = 4
_FULL = 0xFFFFFF


class Payload(NamedTuple):
    """One whole payload: ``data[start:end]``."""

    data: bytes
    start: int
    end: int


class PacketSplitter:
    """Feed it what the socket gives, take the payloads that are whole.

    Payloads lie in the received buffer itself; only what crosses two buffers is copied, and a large one only once.
    """

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._have = 0
        self._need = _HEADER_SIZE
        self._long: list[bytes] = []  # the pieces so far of a payload of 16 MiB and more

    def feed(self, received: bytes) -> Iterator[Payload]:
        """The payloads that ``received`` completes, in order."""
        self._parts.append(received)
        self._have += len(received)
        if self._have < self._need:
            return
        data = self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)
        at = 0
        size = len(data)
        while True:
            start = at + _HEADER_SIZE
            if start > size:
                self._need = _HEADER_SIZE
                break
            length = data[at] | data[at + 1] << 8 | data[at + 2] << 16
            end = start + length
            if end > size:
                self._need = end - at
                break
            at = end
            if length == _FULL or self._long:
                self._long.append(data[start:end])
                if length < _FULL:
                    whole = b"".join(self._long)
                    self._long = []
                    yield Payload(whole, 0, len(whole))
            else:
                yield Payload(data, start, end)
        rest = data[at:]
        self._parts = [rest] if rest else []
        self._have = len(rest)
