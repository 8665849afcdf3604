"""Length-encoded integers (MySQL Internals, "Protocol::LengthEncodedInteger")."""

from __future__ import annotations

_SIZES = {252: 2, 253: 3, 254: 8}


def packed(data: bytes, at: int) -> tuple[int, int]:
    """The integer at ``at`` and where it ends; raises ValueError or IndexError where there is none."""
    first = data[at]
    if first < 251:
        return first, at + 1
    size = _SIZES.get(first)
    if size is None:
        raise ValueError(f"{first} does not begin a length-encoded integer")
    end = at + 1 + size
    if end > len(data):
        raise ValueError("the data ends within a length-encoded integer")
    return int.from_bytes(data[at + 1 : end], "little"), end


def packed_list(data: bytes) -> list[int]:
    """All the integers in ``data``, one after another."""
    numbers = []
    at = 0
    while at < len(data):
        number, at = packed(data, at)
        numbers.append(number)
    return numbers
