"""A TCP proxy on this machine that can do to a connection what networks do: delay, cut, reset, and go silent."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from contextlib import suppress
from threading import Thread
from types import TracebackType
from typing import Any, Protocol, Self

from cdc_relay.embedded.process import free_port

_CHUNK = 64 * 1024

#: Chunks on their way in one direction; a network holds only so much, then the sender has to wait.
_ON_THE_WAY = 64


class Readable(Protocol):
    """The part of a stream that a proxy needs."""

    async def read(self, n: int, /) -> bytes:
        """Up to ``n`` bytes as soon as there are any; none at the end."""


class Proxy:
    """Runs in a thread of its own. The faults act at once on what is open; ``heal`` ends them for what comes after."""

    def __init__(self, target_port: int, *, host: str = "127.0.0.1", port: int = 0) -> None:
        """``port``: a free one when 0."""
        self.host = host
        self.port = port or free_port()
        self.target_port = target_port
        self._loop = asyncio.new_event_loop()
        self._thread = Thread(target=self._loop.run_forever, name="proxy", daemon=True)
        self._server: asyncio.Server | None = None
        self._links: set[_Link] = set()
        self._delay_s = 0.0
        self._is_silent = False
        self.accepted = 0
        """Connections so far."""

    def __enter__(self) -> Self:
        self._thread.start()
        self._do(self._listen())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._do(self._shut())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    # --- faults

    def retarget(self, port: int) -> None:
        """New connections go to another server; open ones stay where they are."""
        self.target_port = port

    def delay(self, seconds: float) -> None:
        """Every byte takes so much longer, in each direction."""
        self._delay_s = seconds

    def reset(self) -> None:
        """RST to both ends of every connection."""

        def reset_all() -> None:
            for link in list(self._links):
                link.reset()

        self._call(reset_all)

    def cut(self) -> None:
        """Reset every connection and refuse new ones, until ``heal``."""
        self._do(self._unlisten())
        self.reset()

    def silence(self, *, up: bool = True, down: bool = True, new: bool = False) -> None:
        """Half-open: what is open stays open for ever, and nothing passes any more towards the server (``up``) or the
        client (``down``). ``new``: so for connections to come, until ``heal``."""
        self._is_silent = new

        def silence_all() -> None:
            for link in self._links:
                link.silence(up=up, down=down)

        self._call(silence_all)

    def heal(self) -> None:
        """New connections work as they should. Those that were silenced stay so: their network has forgotten them."""
        self._delay_s = 0.0
        self._is_silent = False
        if self._server is None:
            self._do(self._listen())

    @property
    def open_connections(self) -> int:
        return len(self._links)

    @property
    def tasks(self) -> int:
        """That wait for something; none where nothing is open."""
        return len(asyncio.all_tasks(self._loop))

    # --- inside

    async def _listen(self) -> None:
        self._server = await asyncio.start_server(self._accept, self.host, self.port)

    async def _unlisten(self) -> None:
        server, self._server = self._server, None
        if server is not None:
            server.close()

    async def _shut(self) -> None:
        await self._unlisten()
        for link in list(self._links):
            link.reset()
        while others := asyncio.all_tasks() - {asyncio.current_task()}:
            for task in others:
                task.cancel()
            await asyncio.gather(*others, return_exceptions=True)
            await asyncio.sleep(0.01)  # for the transports to close, and for connections accepted just before

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        try:
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self.target_port)
        except (OSError, asyncio.CancelledError):
            _abort(writer)
            return
        link = _Link(writer, far_writer)
        if self._is_silent:
            link.silence(up=True, down=True)
        self._links.add(link)
        with suppress(asyncio.CancelledError):  # at the end: asyncio would complain of it
            try:
                async with asyncio.TaskGroup() as both_ways:  # where one task fails the others end: none is left over
                    self._pump(both_ways, self._requests(reader, writer), far_writer, link.up_is_open)
                    self._pump(both_ways, far_reader, writer, link.down_is_open)
            except* OSError:
                pass  # one end is gone, so the other goes too
            finally:
                self._links.discard(link)
                link.close()

    def _requests(self, client: asyncio.StreamReader, back: asyncio.StreamWriter) -> Readable:
        """What goes to the server; a proxy that knows the protocol may keep some of it and answer ``back``."""
        return client

    def _pump(
        self, tasks: asyncio.TaskGroup, reader: Readable, writer: asyncio.StreamWriter, is_open: asyncio.Event
    ) -> None:
        on_the_way: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(_ON_THE_WAY)
        tasks.create_task(self._take(reader, on_the_way))
        tasks.create_task(_carry(on_the_way, writer, is_open))

    async def _take(self, reader: Readable, on_the_way: asyncio.Queue[tuple[float, bytes]]) -> None:
        data = b"something"
        while data:
            data = await reader.read(_CHUNK)
            await on_the_way.put((self._loop.time() + self._delay_s, data))

    def _call(self, action: Callable[[], None]) -> None:
        async def run() -> None:
            action()

        self._do(run())

    def _do(self, coroutine: Coroutine[Any, Any, None]) -> None:
        done: Future[None] = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        done.result(10)


class _Link:
    """One client's connection and its continuation."""

    def __init__(self, client: asyncio.StreamWriter, server: asyncio.StreamWriter) -> None:
        self._ends = (client, server)
        self.up_is_open = asyncio.Event()
        self.down_is_open = asyncio.Event()
        self.up_is_open.set()
        self.down_is_open.set()

    def silence(self, *, up: bool, down: bool) -> None:
        if up:
            self.up_is_open.clear()
        if down:
            self.down_is_open.clear()

    def reset(self) -> None:
        for end in self._ends:
            _abort(end)

    def close(self) -> None:
        for end in self._ends:
            end.close()


async def _carry(
    on_the_way: asyncio.Queue[tuple[float, bytes]], writer: asyncio.StreamWriter, is_open: asyncio.Event
) -> None:
    loop = asyncio.get_running_loop()
    while True:
        due_at, data = await on_the_way.get()
        if (wait_s := due_at - loop.time()) > 0:
            await asyncio.sleep(wait_s)
        await is_open.wait()
        if not data:
            if writer.can_write_eof():
                writer.write_eof()
            return
        writer.write(data)
        await writer.drain()


def _abort(writer: asyncio.StreamWriter) -> None:
    """Close with a RST (SO_LINGER of no time, see socket(7))."""
    sock = writer.get_extra_info("socket")
    if sock is not None:
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        except OSError:
            pass  # it is closed already
    writer.transport.abort()
