"""The HTTP server for operators: /metrics, /healthz, /readyz and a page at /, in threads of its own.

Whatever its clients do, the program around it goes on: a client that sends nothing, or byte by byte, or reads nothing
is cut off after ``DEADLINE_S``, and the oldest one at once when more than ``MAX_CLIENTS`` are open. No request has a
body, and nothing can be changed from here. If the program itself hangs in an answer, clients are refused rather than
given ever more threads, so that probes fail as they should.
"""

from __future__ import annotations

import errno
import json
import math
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socketserver import TCPServer
from types import TracebackType
from typing import Any, ClassVar, Self
from urllib.parse import urlsplit

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

from cdc_relay import __version__
from cdc_relay.admin import page
from cdc_relay.config import AdminSettings
from cdc_relay.errors import ConfigurationError
from cdc_relay.logs import get_logger

MAX_CLIENTS = 16
"""Clients served at the same time; monitoring is one or two."""
DEADLINE_S = 10.0
"""Longest life of a connection, which serves one request."""

_LINKS = {
    "/metrics": "for Prometheus and OpenMetrics",
    "/healthz": "200 while the program works, else 503: restart it",
    "/readyz": "200 while it takes part in the work, else 503",
}

log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Health:
    """A verdict and what it rests on: each check by name, with what was found."""

    ok: bool
    checks: Mapping[str, str]


class AdminServer:
    """Serves from entering the context to leaving it. Does nothing when ``settings.enabled`` is off.

    ``health``, ``ready`` and ``state`` are called in a thread of the server at each request: they must be quick, do no
    I/O and take no lock that is held for long.
    """

    def __init__(
        self,
        settings: AdminSettings,
        *,
        program: str,
        default_port: int,
        registry: CollectorRegistry,
        health: Callable[[], Health],
        ready: Callable[[], Health],
        state: Callable[[], Mapping[str, object]],
    ) -> None:
        self._settings = settings
        self._wanted_port = default_port if settings.port is None else settings.port
        self._answers = _Answers(program, registry, health, ready, state)
        self._server: _Server | None = None
        self._thread: threading.Thread | None = None

    @property
    def port(self) -> int | None:
        """The port that it listens on; None while it does not."""
        return self._server.server_port if self._server else None

    @property
    def url(self) -> str | None:
        """Where a browser on this machine finds it; None while it does not listen."""
        if self._server is None:
            return None
        return address(str(self._server.server_address[0]), self._server.server_port)

    def __enter__(self) -> Self:
        if not self._settings.enabled:
            return self
        self._server = _bind(self._settings.host, self._wanted_port, self._answers)
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.1}, name="admin", daemon=True
        )
        self._thread.start()
        log.info(f"admin page, health and metrics at {self.url}", action="admin_listening", port=self.port)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._server is None or self._thread is None:
            return
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
        self._server.cut_off(older_than_s=0.0)
        self._server = None


def local(host: str) -> str:
    """How a client on this machine names the host of a server that listens on ``host``."""
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)


def address(host: str, port: int) -> str:
    """Where a browser on this machine finds the server that listens on ``host`` and ``port``."""
    host = local(host)
    return f"http://[{host}]:{port}/" if ":" in host else f"http://{host}:{port}/"


def _bind(host: str, port: int, answers: _Answers) -> _Server:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:  # UnicodeError: no host name at all, e.g. a label of 64 characters
        raise ConfigurationError(
            f"admin.host {host!r} is no address of this machine: {error}",
            hint="Use an IP address or host name of this machine, e.g. 127.0.0.1, or 0.0.0.0 for every interface",
        ) from error
    try:
        # "localhost" may stand for both families; probes and scrapers mean the older one more often.
        family, _, _, _, address = min(found, key=lambda entry: entry[0] != socket.AF_INET)
        return _Server(family, address, answers)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise ConfigurationError(
                f"admin.port {port} on {host} is in use by another program",
                hint="Set admin.port (CDC_ADMIN__PORT) to a free port, or to 0 for any; or admin.enabled to false",
            ) from error
        if error.errno == errno.EACCES:
            raise ConfigurationError(
                f"admin.port {port} may not be used by this user",
                hint="Set admin.port (CDC_ADMIN__PORT) to 1024 or higher",
            ) from error
        raise ConfigurationError(
            f"admin.host {host!r} cannot be listened on: {error.strerror}",
            hint="Use an IP address or host name of this machine, e.g. 127.0.0.1, or 0.0.0.0 for every interface",
        ) from error


@dataclass(frozen=True, slots=True)
class _Answers:
    """What is said at each path: status, content type and body."""

    program: str
    registry: CollectorRegistry
    health: Callable[[], Health]
    ready: Callable[[], Health]
    state: Callable[[], Mapping[str, object]]

    def at(self, path: str, accept: str) -> tuple[HTTPStatus, str, bytes]:
        match path:
            case "/metrics":
                try:
                    encode, content_type = choose_encoder(accept)
                except (TypeError, ValueError):  # "version=latest": such a client gets what one without a wish gets
                    encode, content_type = choose_encoder("")
                return HTTPStatus.OK, content_type, encode(self.registry)
            case "/healthz":
                return _verdict(self.health())
            case "/readyz":
                return _verdict(self.ready())
            case "/":
                health, ready = self.health(), self.ready()
                verdicts = {"Healthy": (health.ok, health.checks), "Ready": (ready.ok, ready.checks)}
                html = page.render(f"{self.program} {__version__}", verdicts, self.state(), _LINKS)
                return HTTPStatus.OK, "text/html; charset=utf-8", html.encode("utf-8", "replace")
            case _:
                text = f"nothing here; there is / {' '.join(_LINKS)}\n"
                return HTTPStatus.NOT_FOUND, "text/plain; charset=utf-8", text.encode()


def _verdict(health: Health) -> tuple[HTTPStatus, str, bytes]:
    body = json.dumps({"ok": health.ok, "checks": dict(health.checks)}, indent=2) + "\n"
    return HTTPStatus.OK if health.ok else HTTPStatus.SERVICE_UNAVAILABLE, "application/json", body.encode()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False  # a client that hangs must not delay the stop
    request_queue_size = 64

    def __init__(self, family: int, address: Any, answers: _Answers) -> None:
        self.address_family = family
        self.answers = answers
        self._clients: dict[socket.socket, float] = {}
        """Connections that have a thread, in the order they came, and when; infinity for those already cut off."""
        # Held while a connection is closed too: its number must not be another's when it is cut off.
        self._clients_lock = threading.Lock()
        super().__init__(address, _Request)

    def server_bind(self) -> None:
        # HTTPServer's own asks the name service for this host's full name, which may take many seconds.
        TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._clients_lock:
            open_clients = [client for client, came in self._clients.items() if came < math.inf]
            if len(open_clients) >= MAX_CLIENTS:
                self._cut_off(open_clients[0])
            refused = len(self._clients) >= 2 * MAX_CLIENTS
            if not refused:
                self._clients[request] = time.monotonic()
        if refused:
            self.shutdown_request(request)
        else:
            super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        with self._clients_lock:
            self._clients.pop(request, None)
            super().shutdown_request(request)

    def service_actions(self) -> None:
        self.cut_off(older_than_s=DEADLINE_S)

    def cut_off(self, *, older_than_s: float) -> None:
        """End the connections that are older; their threads then see the end of the stream and finish."""
        with self._clients_lock:
            since = time.monotonic() - older_than_s
            for client in [client for client, came in self._clients.items() if came <= since]:
                self._cut_off(client)

    def _cut_off(self, client: socket.socket) -> None:
        self._clients[client] = math.inf
        try:
            client.shutdown(socket.SHUT_RDWR)
        except OSError:  # the client has gone already
            pass

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Called by socketserver in the ``except`` of a request's thread."""
        error = sys.exception()
        if isinstance(error, ConnectionError | TimeoutError):  # the client went away, or was cut off
            log.debug(f"an admin client went away: {error}", action="admin_client_gone")
            return
        log.error("an admin page failed; its client gets status 500", action="admin_page_failed", exc_info=error)
        try:
            request.sendall(b"HTTP/1.0 500 Internal Server Error\r\nContent-Length: 0\r\n\r\n")
        except OSError:  # the client has gone away too
            pass


class _Request(BaseHTTPRequestHandler):
    """One GET or HEAD; the answer is complete before its first byte is sent (``handle_error`` relies on it)."""

    server: _Server
    server_version = "cdc-relay"
    sys_version = ""
    timeout: ClassVar[float] = DEADLINE_S

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def _answer(self, *, with_body: bool) -> None:
        path = urlsplit(self.path).path
        status, content_type, body = self.server.answers.at(path, self.headers.get("Accept", ""))
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'")
        self.end_headers()
        if with_body:
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        # Probes come every few seconds: worth a line only to whoever debugs.
        log.debug(f"admin request: {format % args}", action="admin_request", client=self.client_address[0])
