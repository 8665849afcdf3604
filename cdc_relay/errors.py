"""Every error that cdc-relay raises, on one page.

    RelayError                      exit code 1
    ├── ConfigurationError          exit code 2: a setting is wrong; nothing was started
    ├── DatabaseError               exit code 3
    │   ├── DatabaseUnavailable     · retriable: MySQL is away, restarting, read-only, or out of connections
    │   │   ├── DatabaseContended   · retriable: a deadlock or a lock wait; the same transaction may go well at once
    │   │   └── DamagedBinlog       · retriable: bytes of the binlog make no sense; sent again they may
    │   ├── PreflightFailed           the server lacks something that the operator must mend
    │   ├── StaleSource               the binlog cannot be followed from here; reconcile from the table
    │   └── LeadershipLost          · retriable: another relay may be active; publish nothing more
    ├── KafkaError                  exit code 4
    │   ├── KafkaUnavailable        · retriable: brokers are away
    │   └── ProducerFatal           · retriable: the producer must be rebuilt
    ├── MissingTool                 exit code 5: something the throwaway servers need is not on this machine
    ├── CheckpointError             exit code 6: the checkpoint file cannot be written
    └── RowError                      the row itself is at fault: it alone is marked, others go on
        ├── PoisonRow                 no retry can cure it: dead at once
        └── RetryableRow            · retriable: retry_count grows, the sweep tries again

Library errors are translated where they are caught, with ``raise … from``, so that the tree above is all that logic
and the command line ever see. ``retriable`` says whether waiting can help, ``hint`` what the operator can do.
"""

from __future__ import annotations


class RelayError(Exception):
    """Base of all. ``message`` says what is wrong, ``hint`` how to mend it."""

    exit_code = 1
    retriable = False

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}. {self.hint}" if self.hint else self.message


class ConfigurationError(RelayError):
    """A setting is missing or wrong."""

    exit_code = 2


class DatabaseError(RelayError):
    """MySQL refused something that waiting alone does not cure."""

    exit_code = 3


class DatabaseUnavailable(DatabaseError):
    """MySQL cannot be reached or cannot serve now; an outage, not a failure of any row."""

    retriable = True


class DatabaseContended(DatabaseUnavailable):
    """Somebody else holds the rows: the same transaction may go well when it is tried again at once."""


class DamagedBinlog(DatabaseUnavailable):
    """Bytes of the binlog make no sense. Those of a connection come whole the next time, those of a file do not."""


class PreflightFailed(DatabaseError):
    """A requirement on the server, the table or the account is not met."""


class StaleSource(DatabaseError):
    """The wanted position is not in this server's binlog: purged, reset, or another server altogether.

    ``reason`` is the label under which the reconcile that follows is counted.
    """

    def __init__(self, message: str, *, reason: str, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.reason = reason


class LeadershipLost(DatabaseError):
    """This relay no longer holds the lock that makes it the only active one."""

    retriable = True


class KafkaError(RelayError):
    """Kafka refused something that waiting alone does not cure."""

    exit_code = 4


class KafkaUnavailable(KafkaError):
    """No broker can be reached."""

    retriable = True


class ProducerFatal(KafkaError):
    """The producer reported a fatal error and takes no more records; a new one must be built."""

    retriable = True


class MissingTool(RelayError):
    """A program that a throwaway server needs is not on this machine; the hint is the command that installs it."""

    exit_code = 5


class CheckpointError(RelayError):
    """The checkpoint cannot be written, so progress would be lost at the next restart."""

    exit_code = 6


class RowError(RelayError):
    """One outbox row cannot be delivered or applied. ``message`` becomes its ``last_error``."""


class PoisonRow(RowError):
    """No retry can cure it: the row becomes ``dead`` at once."""


class RetryableRow(RowError):
    """It may go well later: ``retry_count`` grows and the sweep tries again."""

    retriable = True
