"""What is remembered of the table's answer about a stretch of ids."""

from __future__ import annotations

from cdc_relay.untouched import UntouchedRows


def test_a_stretch_is_asked_for_once_and_again_when_it_was_forgotten() -> None:
    asked: list[tuple[int, int]] = []
    answers: list[range | set[int]] = [range(1, 100), {1, 2, 50}]

    def ask(first: int, last: int) -> range | set[int]:
        asked.append((first, last))
        return answers[len(asked) - 1]

    rows = UntouchedRows(ask)
    assert rows.has_all([1, 2, 3])
    assert rows.has_all([50])
    assert not rows.has_all([99, 100])
    assert len(asked) == 1
    rows.forget()
    assert rows.has_all([1, 2, 50])
    assert not rows.has_all([3])
    assert len(asked) == 2


def test_ids_far_apart_are_not_known() -> None:
    assert not UntouchedRows(lambda first, last: range(first, last + 1)).has_all([1, 10_000_000])
