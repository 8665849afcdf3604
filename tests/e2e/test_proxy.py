"""The proxy does what it says: otherwise the scenarios that stand on it would prove nothing."""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Iterator
from threading import Thread

import pytest

from tests.e2e.proxy import Proxy
from tests.harness import eventually


@pytest.fixture
def echo() -> Iterator[int]:
    """The port of a server that says everything back."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve(connection: socket.socket) -> None:
            with connection:
                try:
                    while data := connection.recv(65536):
                        connection.sendall(data)
                except OSError:
                    pass  # reset by the test

        def accept() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return  # the test is over
                Thread(target=serve, args=(connection,), daemon=True).start()

        thread = Thread(target=accept, daemon=True)
        thread.start()
        yield server.getsockname()[1]
        server.shutdown(socket.SHUT_RDWR)
        thread.join(5)


@pytest.fixture
def proxy(echo: int) -> Iterator[Proxy]:
    with Proxy(echo) as proxy:
        yield proxy


def connect(proxy: Proxy) -> socket.socket:
    return socket.create_connection(("127.0.0.1", proxy.port), timeout=5)


def asked(client: socket.socket, timeout_s: float = 5.0) -> bytes:
    client.settimeout(timeout_s)
    client.sendall(b"hello")
    return client.recv(100)


def test_bytes_pass_and_the_end_of_a_connection_too(proxy: Proxy) -> None:
    with connect(proxy) as client:
        assert asked(client) == b"hello"
        client.shutdown(socket.SHUT_WR)
        assert client.recv(1) == b""


def test_a_delay_is_added_in_each_direction(proxy: Proxy) -> None:
    proxy.delay(0.2)
    with connect(proxy) as client:
        began = time.monotonic()
        assert asked(client) == b"hello"
        assert time.monotonic() - began >= 0.4


def test_a_silenced_connection_stays_open_and_silent_while_new_ones_work(proxy: Proxy) -> None:
    with connect(proxy) as old, connect(proxy) as new:
        assert asked(old) == b"hello"
        proxy.silence()
        with pytest.raises(TimeoutError):
            asked(old, 0.3)
        proxy.heal()
        with pytest.raises(TimeoutError):
            old.recv(1)
        assert proxy.open_connections == 2
    with connect(proxy) as new:
        assert asked(new) == b"hello"


def test_a_silent_connection_that_is_reset_leaves_nothing_behind(proxy: Proxy) -> None:
    """A task that waited for ever would be found by the garbage collector, in whichever test that runs."""
    with connect(proxy) as client:
        assert asked(client) == b"hello"
        proxy.silence(up=False)
        with pytest.raises(TimeoutError):
            asked(client, 0.3)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    eventually(lambda: proxy.tasks == 0, "the end of all tasks", 5)
    assert proxy.open_connections == 0


def test_a_reset_is_an_error_and_a_cut_proxy_refuses(proxy: Proxy) -> None:
    with connect(proxy) as client:
        assert asked(client) == b"hello"
        proxy.reset()
        with pytest.raises(ConnectionResetError):
            client.recv(1)
    proxy.cut()
    with pytest.raises(ConnectionRefusedError):
        connect(proxy)
    proxy.heal()
    with connect(proxy) as client:
        assert asked(client) == b"hello"
