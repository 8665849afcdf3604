"""DATETIME2, as MySQL and MariaDB pack a DATETIME in the binlog (MySQL source, ``my_time.cc``).

Five bytes, big endian, with the date and the time to the second; then, by the column's precision, none to three bytes
of hundredths, ten thousandths or millionths. Values of one size compare as the times do.
"""

from __future__ import annotations

from datetime import datetime, tzinfo
from struct import Struct

WHOLE_BYTES = 5
LONGEST_BYTES = 8

_OFFSET = 0x8000000000
#: Microseconds of one unit of the fraction, by its bytes.
_UNITS = (1, 10_000, 100, 1)

#: The longest form: date and time to the second, then millionths in three bytes.
_MICROSECONDS = Struct(">5sBH").unpack

_FRACTION = b".%06d"

#: Seconds that are remembered; those of the rows in flight are near each other.
_SECONDS = 4096


def unpack(raw: bytes) -> datetime | None:
    """The wall time; None for dates that Python cannot hold (0000-00-00, and days that a lax sql_mode lets in)."""
    packed = int.from_bytes(raw[:WHOLE_BYTES], "big") - _OFFSET
    date, time = packed >> 17, packed & 0x1FFFF
    year_month, day = date >> 5, date & 31
    try:
        return datetime(
            year_month // 13, year_month % 13, day, time >> 12, time >> 6 & 63, time & 63, _microsecond(raw)
        )
    except ValueError:
        return None


def pack(wall: datetime, size: int) -> bytes:
    """``wall`` in ``size`` bytes, cut off to what they hold."""
    return packed_forms(wall)[size]


def packed_forms(wall: datetime) -> dict[int, bytes]:
    """``wall`` in each number of bytes that a column's times may have, cut off to what they hold."""
    date = (wall.year * 13 + wall.month) << 5 | wall.day
    time = wall.hour << 12 | wall.minute << 6 | wall.second
    whole = ((date << 17 | time) + _OFFSET).to_bytes(WHOLE_BYTES, "big")
    forms = {WHOLE_BYTES: whole}
    for size in (1, 2, 3):
        forms[WHOLE_BYTES + size] = whole + (wall.microsecond // _UNITS[size]).to_bytes(size, "big")
    return forms


def _microsecond(raw: bytes) -> int:
    return int.from_bytes(raw[WHOLE_BYTES:], "big") * _UNITS[len(raw) - WHOLE_BYTES]


class Rfc3339:
    """Packed wall times of one zone as RFC 3339 with offset: what ``clock.rfc3339`` gives of the unpacked ones.

    Rows come many to a second, so everything but the fraction is made once a second.
    """

    def __init__(self, zone: tzinfo) -> None:
        self._zone = zone
        self._forms: dict[bytes, bytes | None] = {}

    def text(self, raw: bytes) -> bytes | None:
        """``raw`` in words; None for dates that Python cannot hold."""
        if len(raw) == LONGEST_BYTES:
            second, high, low = _MICROSECONDS(raw)
            microsecond = high << 16 | low
        else:
            second, microsecond = raw[:WHOLE_BYTES], _microsecond(raw)
        try:
            form = self._forms[second]
        except KeyError:
            form = self._learn(second)
        if form is None or microsecond >= 1_000_000:  # more than a second: damaged
            return None
        return form % microsecond if microsecond else form.replace(_FRACTION, b"")

    def _learn(self, second: bytes) -> bytes | None:
        if len(self._forms) >= _SECONDS:
            self._forms.clear()
        wall = unpack(second)
        form = None
        if wall is not None:
            naive = wall.isoformat().encode()
            form = naive + _FRACTION + wall.replace(tzinfo=self._zone).isoformat().encode()[len(naive) :]
        self._forms[second] = form
        return form
