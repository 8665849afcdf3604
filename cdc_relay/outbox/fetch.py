"""The rows of a SELECT as the server sends them, for a fifth of the processor time that the driver takes for them.

The driver makes objects of every packet and every value, one call each, before anybody knows whether they are wanted.
For statements that give many rows that is most of all their work. Here the driver sends the statement, and the bytes
that answer it are split as those of the binlog are (``packets.py``). A row is then a list of texts, as the protocol has
it (MySQL Internals, "Text Resultset Row"); what they mean is the caller's to know.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import pymysql
from pymysql.constants import COMMAND, CR
from sqlalchemy import Connection

from cdc_relay.outbox.database import is_answer
from cdc_relay.outbox.packets import PacketSplitter, Payload

TextRow = list[bytes | None]
"""One row: each value as text in UTF-8, or as the bytes of a binary column; None for NULL."""

#: What is used of PyMySQL beyond its public names, and an agreement with the server by which answers would end in
#: another way (CLIENT_DEPRECATE_EOF). Without the one or with the other the driver reads the rows.
_NAMES = ("_execute_command", "_read_packet", "_rfile", "client_flag")
_OTHER_END = 1 << 24

_RECEIVE_BYTES = 256 * 1024

_ERR = 0xFF
_EOF = 0xFE
_EOF_BELOW = 9
"""A packet that begins with ``_EOF`` and is as long as this is a row whose first value is of 16 MiB or more."""

#: How a value begins whose length takes more than one byte: how many it takes.
_NULL = 0xFB
_LENGTH_BYTES = {0xFC: 2, 0xFD: 3, 0xFE: 8}


def fetch(connection: Connection, sql: str, values: Mapping[str, Any] | None = None) -> list[TextRow]:
    """All rows of the SELECT ``sql``, whose ``%(name)s`` stand for ``values``.

    Raises ``pymysql.err.Error``. Unless that is the server's answer the connection is given up, as it may be in the
    middle of one.
    """
    driver: Any = connection.connection.driver_connection
    if not all(hasattr(driver, name) for name in _NAMES) or driver.client_flag & _OTHER_END:
        options = {"no_parameters": not values}
        found = connection.exec_driver_sql(sql, dict(values) if values else None, execution_options=options)
        return [[_as_text(value) for value in row] for row in found]
    if not connection.in_transaction():
        connection.begin()  # as with every first statement
    try:
        return list(_rows(driver, driver.cursor().mogrify(sql, values) if values else sql))
    except BaseException as error:
        if not is_answer(error):
            connection.invalidate(error)
        if isinstance(error, OSError):
            raise pymysql.err.OperationalError(CR.CR_SERVER_LOST, f"the connection broke: {error}") from error
        raise


def _rows(driver: Any, sql: str) -> Iterator[TextRow]:
    driver._execute_command(COMMAND.COM_QUERY, sql)
    columns = driver._read_packet().read_length_encoded_integer()
    for _ in range(columns + 1):  # their definitions, and the end of those
        driver._read_packet()
    splitter = PacketSplitter()
    while True:
        received = driver._rfile.read1(_RECEIVE_BYTES)
        if not received:
            raise ConnectionError("the server closed it in the middle of an answer")
        for payload in splitter.feed(received):
            first = payload.data[payload.start]
            if first == _EOF and payload.end - payload.start < _EOF_BELOW:
                return
            if first == _ERR:
                pymysql.err.raise_mysql_exception(payload.data[payload.start : payload.end])
            yield _values(payload)


def _values(row: Payload) -> TextRow:
    data, at, end = row
    values: TextRow = []
    while at < end:
        size = data[at]
        at += 1
        if size >= _NULL:
            if size == _NULL:
                values.append(None)
                continue
            begin = at + _LENGTH_BYTES[size]
            size = int.from_bytes(data[at:begin], "little")
            at = begin
        values.append(data[at : at + size])
        at += size
    return values


def _as_text(value: Any) -> bytes | None:
    return value if value is None or isinstance(value, bytes) else str(value).encode()
