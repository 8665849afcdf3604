"""What a start depends on, in two round trips; the rest is for ``cdc-relay check``."""

from __future__ import annotations

import time
from threading import Event

from sqlalchemy import Engine

from cdc_relay.config import DatabaseSettings
from cdc_relay.errors import DatabaseUnavailable
from cdc_relay.outbox.database import transaction
from cdc_relay.outbox.statements import OutboxStatements
from cdc_relay.preflight.check import raise_first_failure
from cdc_relay.preflight.facts import essentials
from cdc_relay.preflight.mysql import essential_checks

_AGAIN_S = 0.5


def require(engine: Engine, settings: DatabaseSettings, *, patience_s: float, stop: Event) -> None:
    """Raise PreflightFailed for the first requirement that is not met, DatabaseError for a refusal.

    A server that is away is waited for up to ``patience_s``, then DatabaseUnavailable is raised: at a start the address
    is more likely wrong than the server down. Once the relay works, outages are waited out.
    """
    deadline = time.monotonic() + patience_s
    while not stop.is_set():
        try:
            with transaction(engine) as connection:
                raise_first_failure(essential_checks(essentials(connection, settings.table), settings.table))
                OutboxStatements(settings.table).touch_none(connection)
            return
        except DatabaseUnavailable as error:
            if time.monotonic() > deadline:
                raise DatabaseUnavailable(
                    f"no answer within {patience_s:g} s: {error.message}",
                    hint="check database.url, and that the server runs and can be reached from here",
                ) from error
            stop.wait(_AGAIN_S)
