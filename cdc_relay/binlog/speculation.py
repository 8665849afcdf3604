"""Decoding rows by what the row before them looked like: a third of the time that looking at each column takes.

Rows of one outbox are alike: the same columns are NULL, topic, type and status are of a few values, and only key and
payload change their length. So for a set of NULL columns and the lengths of those few values a function is generated
that takes a row apart with one precompiled ``Struct`` for each stretch between the columns of free length. It
*verifies* what it supposed: the null bitmap must be the same, and the bytes of the few values, lengths included, must
be bytes that the general decoder has read before, which is also where their decoded values come from. As every column
before them is in its supposed place, so are they. A row that does not fit goes through the general decoder
(``rows.py``), and the next ones are supposed to look like it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from struct import Struct
from struct import error as StructError
from typing import Any, Literal

from cdc_relay.binlog.rows import DecodeRows, RowDecoder, RowsUndecodable, is_utf8, layout
from cdc_relay.outbox.row import BinlogRow, OutboxRow

Role = Literal["id", "few", "wall", "free", "skip"]

#: What each column is to a plan. All others are stepped over.
ROLES: dict[str, Role] = {
    "id": "id",
    "biz_type": "few",
    "topic": "few",
    "message_key": "free",
    "payload": "free",
    "status": "few",
    "retry_count": "few",
    "next_retry_at": "wall",
    "created_at": "wall",
}
_NULL_VALUES = {"biz_type": "", "topic": "", "message_key": b"", "payload": b"", "status": "", "retry_count": 0}
_NULL_VALUES |= {"id": 0, "next_retry_at": None, "created_at": None}

#: ``struct`` codes of unsigned integers by size; 3 bytes are read as 2 and 1.
_CODES = {1: "B", 2: "H", 3: "HB", 4: "I", 8: "Q"}

#: Plans and values that are kept at most; an outbox has a handful.
_MOST_PLANS = 512
_MOST_VALUES = 4096


@dataclass(frozen=True, slots=True)
class Field:
    """One column of a row image: what it is for, and how its size is known."""

    name: str
    role: Role
    size: int
    """Bytes of its value, or of the length before its value."""
    sized: bool
    """Whether a length stands before the value."""


Plan = Callable[[bytes, int, int, list[OutboxRow]], int]
"""``(data, at, end, rows) -> at``: decode rows as long as they look as supposed; where the first other one begins."""


def speculate(decoder: RowDecoder) -> SpeculatingDecoder | None:
    """The quicker decoder for the same rows; None for tables that it does not cover."""
    if not decoder.complete:
        return None
    fields = []
    for name, column, charset in decoder.columns:
        role = ROLES.get(name, "skip")
        size, sized = layout(column)
        if (role == "free" and not is_utf8(charset)) or (role == "id" and size == 3) or (sized and size not in _CODES):
            return None
        fields.append(Field(name, role, size, sized))
    return SpeculatingDecoder(tuple(fields), decoder.decode)


class SpeculatingDecoder:
    """Decodes the rows of one table with one set of columns present."""

    def __init__(self, fields: tuple[Field, ...], general: DecodeRows) -> None:
        self._fields = fields
        self._general = general
        self._null_bytes = (len(fields) + 7) // 8
        self._known: dict[tuple[bytes, tuple[int, ...]], tuple[Plan, list[dict[bytes, tuple[Any, ...]]]]] = {}
        self.plan: Plan = _no_plan
        """Decodes rows that look like the last one that did not."""
        self.source = ""
        """The Python of the latest plan, for whoever wants to see it."""

    def decode_into(self, data: bytes, at: int, end: int, rows: list[OutboxRow]) -> None:
        """Append the rows that lie in ``data[at:end]``. Raises ValueError or IndexError; ``rows`` may have grown."""
        at = self.plan(data, at, end, rows)
        while at < end:
            at = self.plan(data, self._decode_one(data, at, end, rows), end, rows)
        if at != end:
            raise RowsUndecodable(f"rows end at byte {at}, their event at {end}")

    def _decode_one(self, data: bytes, at: int, end: int, rows: list[OutboxRow]) -> int:
        """Decode one row by the general decoder, and suppose that the next ones look like it."""
        spans = self._measure(data, at)
        row_end = max((span[1] for span in spans if span), default=at + self._null_bytes)
        if row_end > end:
            raise RowsUndecodable(f"a row ends at byte {row_end}, its event at {end}")
        (row,) = self._general(data, at, row_end)
        rows.append(row)
        nulls = data[at : at + self._null_bytes]
        groups = _few_groups(self._fields, spans)
        sizes = tuple(group[-1][1][1] - group[0][1][0] for group in groups)
        found = self._known.get((nulls, sizes))
        if found is None:
            if len(self._known) >= _MOST_PLANS:
                self._known.clear()
            values: list[dict[bytes, tuple[Any, ...]]] = [{} for _ in groups]
            plan, self.source = _make_plan(self._fields, nulls, sizes, values)
            found = self._known[nulls, sizes] = plan, values
        self.plan, dictionaries = found
        for group, known in zip(groups, dictionaries, strict=True):
            if len(known) >= _MOST_VALUES:
                known.clear()
            raw = data[group[0][1][0] : group[-1][1][1]]
            known[raw] = tuple(getattr(row, field.name) for field, _ in group)
        return row_end

    def _measure(self, data: bytes, at: int) -> list[tuple[int, int] | None]:
        """Where each field begins (with its length) and ends; None for those that are NULL."""
        nulls = int.from_bytes(data[at : at + self._null_bytes], "little")
        at += self._null_bytes
        spans: list[tuple[int, int] | None] = []
        for index, field in enumerate(self._fields):
            if nulls >> index & 1:
                spans.append(None)
                continue
            end = at + field.size
            if field.sized:
                end += int.from_bytes(data[at:end], "little")
            spans.append((at, end))
            at = end
        return spans


def _no_plan(data: bytes, at: int, end: int, rows: list[OutboxRow]) -> int:
    return at


def _few_groups(
    fields: tuple[Field, ...], spans: list[tuple[int, int] | None]
) -> list[list[tuple[Field, tuple[int, int]]]]:
    """The columns of few values that are there, neighbours together: what stands between them is NULL."""
    groups: list[list[tuple[Field, tuple[int, int]]]] = []
    open_group: list[tuple[Field, tuple[int, int]]] | None = None
    for field, span in zip(fields, spans, strict=True):
        if span is None:
            continue
        if field.role != "few":
            open_group = None
        elif open_group is None:
            open_group = [(field, span)]
            groups.append(open_group)
        else:
            open_group.append((field, span))
    return groups


def _make_plan(
    fields: tuple[Field, ...], nulls: bytes, few_sizes: tuple[int, ...], values: list[dict[bytes, tuple[Any, ...]]]
) -> tuple[Plan, str]:
    """Write and compile the function for rows with these NULL columns and these lengths of the few values."""
    namespace: dict[str, Any] = {
        "NULLS": nulls,
        "BinlogRow": BinlogRow,
        "new": tuple.__new__,
        "StructError": StructError,
    }
    lines: list[str] = []
    code, targets, groups = f"<{len(nulls)}s", ["nulls"], 0
    after: list[str] = ["if nulls != NULLS:", "    return at"]
    bits = int.from_bytes(nulls, "little")
    read = {}
    structs = 0
    start = "at"  # where the next stretch begins: after one value of free length, before the next
    in_group: list[str] = []

    def end_group() -> None:
        nonlocal code, groups, in_group
        if in_group:
            code += f"{few_sizes[groups]}s"
            targets.append(f"few{groups}")
            names = ", ".join(in_group)
            after.append(f"{names}{',' if len(in_group) == 1 else ''} = FEW{groups}[few{groups}]")
            namespace[f"FEW{groups}"] = values[groups]
            groups, in_group = groups + 1, []

    def end_stretch() -> None:
        nonlocal code, targets, after, structs, start
        struct = Struct(code)
        namespace[f"unpack{structs}"] = struct.unpack_from
        if targets:
            lines.append(f"{', '.join(targets)}{',' if len(targets) == 1 else ''} = unpack{structs}(data, {start})")
        lines.extend(after)
        lines.append(f"begin = {start} + {struct.size}")
        start = "end_of_value"
        code, targets, after, structs = "<", [], [], structs + 1

    for index, field in enumerate(fields):
        if bits >> index & 1:
            continue
        if field.role != "skip":
            read[field.name] = field.name
        if field.role == "few":
            in_group.append(field.name)
            continue
        end_group()
        if field.sized:
            code += _CODES[field.size]
            targets += ["size", "high"] if field.size == 3 else ["size"]
            if field.size == 3:
                after.append("size |= high << 16")
            end_stretch()
            lines.append("end_of_value = begin + size")
            if field.role == "free":
                lines.append(f"{field.name} = data[begin:end_of_value]")
        elif field.role == "id":
            code += _CODES[field.size]
            targets.append("id")
        elif field.role == "wall":
            code += f"{field.size}s"
            targets.append(field.name)
        else:
            code += f"{field.size}x"
    end_group()
    end_stretch()
    row = ", ".join(read.get(name, repr(value)) for name, value in ((n, _NULL_VALUES[n]) for n in ROLES))
    source = "\n".join(
        [
            "def plan(data, at, end, rows):",
            "    append = rows.append",
            "    try:",
            "        while at < end:",
            *(f"            {line}" for line in lines),
            f"            append(new(BinlogRow, ({row}, False)))",
            "            at = begin",
            "    except (KeyError, StructError):",
            "        pass  # another value, or the row ends before what was supposed",
            "    return at",
        ]
    )
    exec(compile(source, "<plan of rows>", "exec"), namespace)
    plan: Plan = namespace["plan"]
    return plan, source
