"""The dump connection: mysql-replication connects, logs in and asks for the dump; from there on we read the bytes.

The library is used through these private names, which are why its version is pinned exactly:
``_BinLogStreamReader__connect_to_stream`` (connect, checksum, heartbeat, registration, COM_BINLOG_DUMP) and
``_stream_connection`` (the PyMySQL connection); of PyMySQL ``_sock`` (plain or TLS socket) and,
for the library reader, ``_read_packet``.
"""

from __future__ import annotations

import select
import socket
import uuid
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import pymysql
from pymysqlreplication import BinLogStreamReader

from cdc_relay.binlog.position import BinlogPosition
from cdc_relay.config import DatabaseSettings, TailSettings
from cdc_relay.errors import ConfigurationError, DatabaseUnavailable, StaleSource
from cdc_relay.outbox.database import password_bytes, translate

#: Received at a time at most.
_RECEIVE_BYTES = 256 * 1024
#: TLS records, of which a small transaction has several, taken at a time at most.
_TLS_RECORDS = 64

#: Payloads taken at a time at most where the library splits them.
_PACKETS = 500

#: What identifies a server, beyond its address: binlog positions mean nothing on another. MariaDB has no server_uuid.
IDENTITY_SQL = "SELECT @@server_uuid"
MARIADB_IDENTITY_SQL = "SELECT CONCAT('mariadb-', @@server_id, '-', @@hostname, '-', @@port)"
_UNKNOWN_VARIABLE = 1193

_CONNECT = "_BinLogStreamReader__connect_to_stream"

#: One identity a process: a server that still has a dead connection of ours drops it when we come back.
_REPLICA_UUID = str(uuid.uuid4())


#: What the wire reader needs of PyMySQL, beyond what both readers need.
_WIRE_NAMES = ("_sock", "_rfile", "_force_close")


class ReaderChoice(NamedTuple):
    """How the binlog is read, and why so."""

    reader: Literal["wire", "library"]
    why: str


def choose_reader(wanted: Literal["auto", "wire", "library"]) -> ReaderChoice:
    """``auto`` is the wire reader where the installed libraries have what it needs.

    Raises ConfigurationError when the wire reader is asked for and they have not.
    """
    if wanted == "library":
        return ReaderChoice("library", "tail.reader asks for it")
    missing = [name for name in _WIRE_NAMES if not hasattr(pymysql.connections.Connection, name)]
    if not missing:
        return ReaderChoice("wire", f"PyMySQL {pymysql.VERSION_STRING} has what it needs")
    lack = f"PyMySQL {pymysql.VERSION_STRING} has no {', '.join(missing)}"
    if wanted == "wire":
        raise ConfigurationError(
            f"tail.reader = wire does not work: {lack}",
            hint="set tail.reader = auto, or install the versions that constraints.txt names",
        )
    return ReaderChoice("library", f"the wire reader does not work: {lack}")


class DumpConnection:
    """An open dump from ``start`` on. Raises DatabaseUnavailable or StaleSource."""

    def __init__(
        self,
        database: DatabaseSettings,
        tail: TailSettings,
        server_id: int,
        start: BinlogPosition,
        expected_server: str | None,
    ) -> None:
        self._silence_s = tail.read_timeout_s
        self._reader = BinLogStreamReader(
            _connect_arguments(database, tail),
            server_id=server_id,
            blocking=True,
            resume_stream=True,
            log_file=start.file,
            log_pos=start.offset,
            slave_heartbeat=tail.heartbeat_s,
            slave_uuid=_REPLICA_UUID,
            enable_logging=False,
            pymysql_wrapper=_checked_connect(expected_server),
        )
        try:
            getattr(self._reader, _CONNECT)()
        except (pymysql.err.Error, OSError) as error:
            self.close()
            raise translate(error) from error
        self._socket: socket.socket = self._reader._stream_connection._sock
        self._is_tls = hasattr(self._socket, "cipher")
        self._readable = select.poll()
        self._readable.register(self._socket, select.POLLIN)

    def receive(self) -> bytes:
        """The next bytes, as many as there are. Waits, as long as the server's heartbeats come in time."""
        try:
            received = self._socket.recv(_RECEIVE_BYTES)
            if self._is_tls and received:
                received = self._gather(received)
        except TimeoutError as error:
            raise DatabaseUnavailable(
                f"the binlog connection was silent for {self._silence_s:g} s although heartbeats are due"
            ) from error
        except OSError as error:
            raise DatabaseUnavailable(f"the binlog connection broke: {error}") from error
        if not received:
            raise DatabaseUnavailable("the server closed the binlog connection")
        return received

    @property
    def has_more(self) -> bool:
        """Whether bytes have come already, which ``receive`` would give without waiting."""
        return bool(self._readable.poll(0))

    def _gather(self, received: bytes) -> bytes:
        """TLS gives one record at a time, be it ever so small; those that are there cost less on their way together."""
        parts, size = [received], len(received)
        while len(parts) < _TLS_RECORDS and size < _RECEIVE_BYTES and self.has_more:
            received = self._socket.recv(_RECEIVE_BYTES)
            if not received:
                break  # closed; the next one finds it so
            parts.append(received)
            size += len(received)
        return b"".join(parts)

    def packets(self) -> list[bytes]:
        """The next payloads, by PyMySQL: waits for the first, and takes more while there are. Raises MySQLError."""
        payloads = [self._packet()]
        while len(payloads) < _PACKETS and self.has_more:
            payloads.append(self._packet())
        return payloads

    def _packet(self) -> bytes:
        try:
            return bytes(self._reader._stream_connection._read_packet().get_all_data())
        except (AttributeError, ValueError) as error:  # its file is gone: another thread has closed it
            raise DatabaseUnavailable("the binlog connection is closed") from error

    def close(self) -> None:
        """Close it, whatever state it is in; also wakes a ``receive`` of another thread."""
        connection = getattr(self._reader, "_stream_connection", None)
        if connection is None:
            return
        sock = getattr(connection, "_sock", None)
        if sock is not None:
            try:
                sock.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass  # it is closed already, or was never connected
        # Not close(): that would send COM_QUIT into a stream that the server is writing, and may wait.
        connection._force_close()


def identity(execute: Callable[[str], Any]) -> str:
    """The identity of the server that ``execute`` asks; it runs a query and returns the single value."""
    try:
        return str(execute(IDENTITY_SQL))
    except pymysql.err.Error as error:
        if error.args and error.args[0] == _UNKNOWN_VARIABLE:
            return str(execute(MARIADB_IDENTITY_SQL))
        raise


def _connect_arguments(database: DatabaseSettings, tail: TailSettings) -> dict[str, Any]:
    url = database.parsed
    _, arguments = url.get_dialect()().create_connect_args(url)
    return dict(arguments) | {
        "charset": "utf8mb4",
        "password": password_bytes(database),
        "connect_timeout": max(1, int(database.connect_timeout_s)),
        "read_timeout": tail.read_timeout_s,
        "write_timeout": tail.read_timeout_s,
        # Says that we understand checksums whatever the server writes now: older files may be written otherwise.
        "init_command": "SET @master_binlog_checksum = 'CRC32', @source_binlog_checksum = 'CRC32'",
    }


def _checked_connect(expected_server: str | None) -> Callable[..., Any]:
    """PyMySQL's connect, followed by a look at who answers: an address may lead to another server by now."""

    def connect(**arguments: Any) -> Any:
        connection = pymysql.connect(**arguments)
        if expected_server is None:
            return connection

        def execute(sql: str) -> Any:
            with connection.cursor() as cursor:
                cursor.execute(sql)
                return (cursor.fetchone() or (None,))[0]

        try:
            found = identity(execute)
            if found != expected_server:
                raise StaleSource(
                    f"the address now leads to server {found}, the position is of server {expected_server}",
                    reason="other_server",
                )
        except BaseException:
            connection.close()
            raise
        return connection

    return connect
