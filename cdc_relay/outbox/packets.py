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
    """Add what the socket gives, take the payloads that are whole.

    Payloads lie in the received buffer itself; only what crosses two buffers is copied, and a large one only once.
    """

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._have = 0
        self._need = _HEADER_SIZE
        self._long: list[bytes] = []  # the pieces so far of a payload of 16 MiB and more

    def add(self, received: bytes) -> bytes:
        """What is there, from the beginning of a packet on; nothing as long as that packet cannot be whole."""
        self._parts.append(received)
        self._have += len(received)
        if self._have < self._need:
            return b""
        return received if len(self._parts) == 1 else b"".join(self._parts)

    def take(self, data: bytes, at: int) -> tuple[Payload | None, int]:
        """The payload of the packet at ``at`` of what ``add`` gave, and where the next packet begins.

        No payload and ``at`` itself when the packet is not whole; no payload when it goes on in the next packet.
        """
        start = at + _HEADER_SIZE
        if start > len(data):
            self._need = _HEADER_SIZE
            return None, at
        length = data[at] | data[at + 1] << 8 | data[at + 2] << 16
        end = start + length
        if end > len(data):
            self._need = end - at
            return None, at
        if length < _FULL and not self._long:
            return Payload(data, start, end), end
        self._long.append(data[start:end])
        if length == _FULL:
            return None, end
        whole = b"".join(self._long)
        self._long = []
        return Payload(whole, 0, len(whole)), end

    def keep(self, data: bytes, at: int) -> None:
        """Everything before ``at`` was taken."""
        if data:
            rest = data[at:]
            self._parts = [rest] if rest else []
            self._have = len(rest)
            if not rest:
                self._need = _HEADER_SIZE

    def feed(self, received: bytes) -> Iterator[Payload]:
        """The payloads that ``received`` completes, in order."""
        data = self.add(received)
        at = 0
        while data:
            payload, end = self.take(data, at)
            if end == at:
                break
            at = end
            if payload is not None:
                yield payload
        self.keep(data, at)

    @property
    def inside_long(self) -> bool:
        """Whether the next packet goes on with a payload of 16 MiB and more."""
        return bool(self._long)
