"""A proxy before Kafka that, when told, speaks for a broker which coordinates the consumer group no longer."""

from __future__ import annotations

import asyncio
import struct

from tests.e2e.proxy import Proxy, Readable

# From Kafka's protocol guide (kafka.apache.org/protocol): api keys and error codes.
_OFFSET_FETCH = 9
_NOT_COORDINATOR = 16

_LENGTH = struct.Struct(">i")
#: API key, its version, correlation id, length of the client id that follows.
_HEADER = struct.Struct(">hhih")


class Coordinator(Proxy):
    """Passes everything, but for the next ``refusals`` questions for a group's offsets, which no broker hears."""

    refusals = 0

    def _requests(self, client: asyncio.StreamReader, back: asyncio.StreamWriter) -> Readable:
        return _Requests(self, client, back)

    def answer(self, request: bytes) -> bytes | None:
        """What to say to the request in the broker's place; None: let it pass."""
        key, version, correlation, name_length = _HEADER.unpack_from(request)
        if key != _OFFSET_FETCH or self.refusals == 0:
            return None
        assert version in (8, 9), f"OffsetFetch v{version} wants another answer"
        self.refusals -= 1
        at = _HEADER.size + name_length + 2  # no tags; one group
        group = request[at : at + request[at]]  # a compact string: its length and one, and its bytes
        no_tags, one_group, no_topics, throttle_ms = b"\0", b"\2", b"\1", bytes(4)
        return b"".join((
            _LENGTH.pack(correlation), no_tags, throttle_ms,
            one_group, group, no_topics, struct.pack(">h", _NOT_COORDINATOR), no_tags, no_tags,
        ))  # fmt: skip


class _Requests:
    """A client's requests, one a read, less those that are answered here."""

    def __init__(self, proxy: Coordinator, client: asyncio.StreamReader, back: asyncio.StreamWriter) -> None:
        self._proxy, self._client, self._back = proxy, client, back

    async def read(self, _: int) -> bytes:
        while True:
            try:
                length = await self._client.readexactly(_LENGTH.size)
                request = await self._client.readexactly(*_LENGTH.unpack(length))
            except asyncio.IncompleteReadError:
                return b""
            answer = self._proxy.answer(request)
            if answer is None:
                return length + request
            self._back.write(_LENGTH.pack(len(answer)) + answer)
