"""Where in the binlog a stream is, by the events that say so: the frame around all transactions.

Source: MySQL Internals, "Rotate Event", "Format Description Event", "Binlog Event Header".
"""

from __future__ import annotations

from cdc_relay.binlog.events import CHECKSUM_CRC32, CHECKSUM_SIZE, Event, parse_checksum_algorithm, parse_rotate
from cdc_relay.binlog.position import BinlogPosition
from cdc_relay.errors import StaleSource

_LOW_32_BITS = 0xFFFFFFFF


class StreamPlace:
    """The end of the last event, and what its file says of itself."""

    def __init__(self, start: BinlogPosition) -> None:
        self._file = start.file
        self.offset = start.offset
        """The end of the last event, in its file."""
        self.checksum_size = 0
        """Bytes at the end of each event that are its checksum."""
        self.files_created: dict[str, int] = {}
        """When each binlog file seen was begun, seconds since 1970: tells two files of one name apart."""
        self._is_stopped = False

    @property
    def position(self) -> BinlogPosition:
        """File and offset."""
        return BinlogPosition(self._file, self.offset)

    def advance(self, event: Event) -> None:
        """Step behind an event that is no ROTATE."""
        low = event.end_position
        if low == 0 and (self.offset + event.end - event.start) & _LOW_32_BITS:
            return  # made up by the server while sending; not in the file
        # Past 4 GiB in one file the header's 32 bits begin anew, so they count from where we are. The end of the last
        # event does not tell: the server may leave events out, and a heartbeat may name an earlier place.
        ahead = (low - self.offset) & _LOW_32_BITS
        if ahead < 1 << 31:
            self.offset += ahead

    def begin_file(self, event: Event) -> None:
        """Take the FORMAT_DESCRIPTION of a file."""
        self.checksum_size = CHECKSUM_SIZE if parse_checksum_algorithm(event) == CHECKSUM_CRC32 else 0
        self.files_created[self._file] = event.timestamp
        if event.end_position:  # otherwise it is sent again, at the start of a dump from the middle of the file
            self.advance(event)

    def stop(self) -> None:
        """Take a STOP: the file has ended as the server was shut down."""
        self._is_stopped = True

    def rotate(self, event: Event) -> bool:
        """Go where a ROTATE leads; whether that is another place. Raises StaleSource when files may be left out."""
        file, offset = parse_rotate(event)
        if (file, offset) == (self._file, self.offset):
            return False  # the made-up ROTATE at the start of a dump
        if not event.timestamp and not self._is_stopped:
            # Made up, and the file before it did not end: after a crash, or because RESET BINARY LOGS took it away.
            # Then files that followed it may have gone unread as well.
            raise StaleSource(f"the binlog goes on in {file}, and {self._file} has no end", reason="reset")
        self._is_stopped = False
        self._file, self.offset = file, offset
        return True
