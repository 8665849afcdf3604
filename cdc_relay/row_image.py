"""How much of a row our own writes put into the binlog: the relay's UPDATEs, and what the consumer writes.

MySQL logs a changed row whole, before and after: the payload twice, to say that four small columns have changed. With
``binlog_row_image = MINIMAL`` it logs the primary key and the columns that were set. That is set for our own sessions,
which insert nothing into the outbox: what the application writes stays in the binlog as the server is told to keep it,
and that is what the tailer reads. (MySQL manual, "Binary Logging Options and Variables"; MariaDB has the variable too.)
"""

from __future__ import annotations

from typing import Any

import pymysql
from sqlalchemy import Engine, event

from cdc_relay.logs import get_logger
from cdc_relay.outbox.database import error_code, translate

log = get_logger(__name__)

#: The statement; it takes SESSION_VARIABLES_ADMIN, or BINLOG ADMIN on MariaDB.
SET_MINIMAL = "SET SESSION binlog_row_image = 'MINIMAL'"

#: The privilege is missing; there is no such variable, as a proxy in between may say.
_REFUSALS = frozenset({1227, 1193})


def log_changes_only(engine: Engine, setting: str) -> None:
    """Let every connection that ``engine`` makes from now on log no more of a row than what was changed.

    Where the account may not, the server's own setting holds, and that is said once. ``setting`` is the one of ours
    that asks for this.
    """
    said = False

    @event.listens_for(engine, "connect")
    def _configure_session(connection: Any, _: Any) -> None:
        nonlocal said
        try:
            with connection.cursor() as cursor:
                cursor.execute(SET_MINIMAL)
        except pymysql.err.MySQLError as error:
            if error_code(error) not in _REFUSALS:
                raise
            if not said:
                said = True
                log.info(
                    f"our writes are logged as the server's binlog_row_image says: {translate(error).message}",
                    action="row_image_refused",
                    hint=f"grant the privilege to keep the binlog small, or set {setting} to server",
                )
