"""How far a session has come, and what of that is kept for the next start: the checkpoint, and what Kafka has had."""

from __future__ import annotations

import time
from typing import Protocol

from cdc_relay.acknowledged import Acknowledged, AcknowledgedFile
from cdc_relay.checkpoint import Checkpoint, Checkpointer
from cdc_relay.errors import CheckpointError, LeadershipLost
from cdc_relay.logs import get_logger
from cdc_relay.metrics import RelayMetrics
from cdc_relay.parking import SharedParking
from cdc_relay.watermark import AckWatermark

log = get_logger(__name__)


class BinlogFiles(Protocol):
    """What is known of the binlog's files (``binlog.reconnect.ReconnectingSource``)."""

    def file_created_at(self, file: str) -> int:
        """When a file was begun, in seconds since 1970; 0 if it was not seen."""


class Progress:
    """The watermark of one session, and its way to the disk."""

    def __init__(
        self,
        server: str,
        watermark: AckWatermark,
        files: BinlogFiles | None,
        parking: SharedParking,
        checkpointer: Checkpointer,
        acknowledged: AcknowledgedFile,
        metrics: RelayMetrics,
        *,
        reconciling: bool,
    ) -> None:
        """``server`` is its identity; ``files`` is None where nothing is tailed, and then nothing is kept either.

        ``reconciling``: the table is still to be caught up from.
        """
        self.watermark = watermark
        self.reconciling = reconciling
        """As long as this is so the watermark must not be resumed from: the table has what lies before it."""
        self._server = server
        self._files = files
        self._parking = parking
        self._checkpointer = checkpointer
        self._acknowledged = acknowledged
        self._metrics = metrics
        self._noted = watermark.acknowledged

    def checkpoint(self) -> Checkpoint | None:
        """The watermark now; None while it must not be resumed from."""
        if self._files is None or self.reconciling:
            return None
        position = self.watermark.position
        file_created_at = self._files.file_created_at(position.file)
        if not file_created_at:
            return None  # known a moment later, when the beginning of the file has come
        return Checkpoint(
            server=self._server,
            position=position,
            file_created_at=file_created_at,
            committed_at=self.watermark.committed_at,
            written_at=time.time(),
            parked=self._parking.must_be_refilled,
        )

    def save(self, *, force: bool) -> None:
        """Write the checkpoint when it is time, or at once; a disk that refuses it does not end the session."""
        checkpoint = self.checkpoint()
        if checkpoint is None:
            return
        try:
            if self._checkpointer.save(checkpoint, force=force):
                self._acknowledged.close()  # the folder may be another one since the last time
                self._metrics.checkpoint_writes.inc()
                self._metrics.checkpoint_timestamp_seconds.set(checkpoint.written_at)
        except LeadershipLost:
            if not force:
                raise
            # At the end of a session that has lost the lock: the position is the next active relay's to keep.
        except CheckpointError as error:
            # The relay goes on: the table is the truth, a restart without the checkpoint only takes longer.
            log.error(f"{error}; delivery goes on", action="checkpoint_failed")

    def note_acknowledged(self) -> None:
        """Keep how far Kafka has everything, if that has moved."""
        position = self.watermark.acknowledged
        if position is self._noted or self._files is None or self.reconciling:
            return
        self._noted = position
        created_at = self._files.file_created_at(position.file)
        self._acknowledged.note(Acknowledged(self._server, position, created_at))

    def close(self) -> None:
        """Save what there is, at the end of the session."""
        self.save(force=True)
        self._acknowledged.close()
