"""Structured logs: one form for our records and those of libraries, secrets masked, nothing unbounded."""

from __future__ import annotations

import io
import json
import logging
import warnings
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from cdc_relay.config import LogSettings
from cdc_relay.errors import ConfigurationError
from cdc_relay.logs import MAX_TEXT, OncePerKind, configure, get_logger

log = get_logger("cdc_relay.test")  # before any configure, as every module does it


@pytest.fixture(autouse=True)
def _leave_logging_as_it_was() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    showwarning = warnings.showwarning
    yield
    logging.captureWarnings(False)
    warnings.showwarning = showwarning
    root.handlers[:] = handlers
    root.setLevel(level)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def configured(stream: io.StringIO | None = None, **settings: Any) -> io.StringIO:
    stream = stream or io.StringIO()
    configure(LogSettings(**settings), program="cdc-relay", stream=stream)
    return stream


def records(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_a_record_is_one_line_of_json_with_sentence_action_and_utc_time() -> None:
    stream = configured(format="json")
    log.info("took over as leader", action="leader_elected", after_s=1.5, host="a")
    (record,) = records(stream)
    at = datetime.fromisoformat(record.pop("timestamp"))
    assert at.utcoffset() == timedelta(0)
    assert abs(datetime.now(UTC) - at) < timedelta(minutes=1)
    assert record == {
        "level": "info",
        "event": "took over as leader",
        "action": "leader_elected",
        "program": "cdc-relay",
        "logger": "cdc_relay.test",
        "after_s": 1.5,
        "host": "a",
    }


@pytest.mark.parametrize("name", ["confluent_kafka", "pymysqlreplication", "sqlalchemy.pool", "py.warnings"])
def test_records_of_libraries_look_the_same(name: str) -> None:
    stream = configured(format="json")
    logging.getLogger(name).warning("broker %s is %s", "mysql://relay:hunter2@db/shop", "down")
    (record,) = records(stream)
    assert record["event"] == "broker mysql://relay:***@db/shop is down"
    assert (record["level"], record["logger"], record["program"]) == ("warning", name, "cdc-relay")
    assert record["action"] == "library"


def test_python_warnings_are_records_too() -> None:
    stream = configured(format="json")
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        logging.captureWarnings(False)
        logging.captureWarnings(True)
        warnings.warn("this goes away", stacklevel=1)
        logging.captureWarnings(False)
    (record,) = records(stream)
    assert "this goes away" in record["event"]


@pytest.mark.parametrize(
    ("level", "shown"),
    [
        ("debug", ["debug", "info", "warning", "error"]),
        ("info", ["info", "warning", "error"]),
        ("warning", ["warning", "error"]),
        ("error", ["error"]),
    ],
)
def test_only_records_from_the_level_on_are_shown(level: str, shown: list[str]) -> None:
    stream = configured(format="json", level=level)
    library = logging.getLogger("confluent_kafka")
    for name in ("debug", "info", "warning", "error"):
        getattr(log, name)("ours")
        getattr(library, name)("theirs")
    assert [(r["event"], r["level"]) for r in records(stream)] == [
        (event, name) for name in shown for event in ("ours", "theirs")
    ]


def test_sqlalchemy_never_prints_the_rows_of_others() -> None:
    stream = configured(format="json", level="debug")
    logging.getLogger("sqlalchemy.engine.Engine").info("INSERT … [('private',)]")
    assert stream.getvalue() == ""
    stream = configured(format="json", level="error")
    logging.getLogger("sqlalchemy.pool").warning("its warnings are no errors")
    assert stream.getvalue() == ""


def test_the_format_is_for_people_on_a_terminal_and_for_machines_elsewhere() -> None:
    terminal, pipe = configured(Terminal(), format="auto"), io.StringIO()
    log.info("hello", action="greet")
    configured(pipe, format="auto")
    log.info("hello", action="greet")
    assert "hello" in terminal.getvalue()
    assert "greet" in terminal.getvalue()
    assert not terminal.getvalue().startswith("{")
    assert records(pipe)[0]["event"] == "hello"


def test_a_format_that_is_asked_for_is_taken_whatever_the_stream() -> None:
    assert _line(Terminal(), "json").startswith("{")
    plain = _line(io.StringIO(), "console")
    assert not plain.startswith("{")
    assert "\x1b" not in plain  # no colours in a file


def _line(stream: io.StringIO, form: str) -> str:
    configured(stream, format=form)
    log.info("hello")
    return stream.getvalue()


@pytest.mark.parametrize("form", ["json", "console"])
@pytest.mark.parametrize(
    "fields",
    [
        {"url": "mysql://relay:hunter2@db/shop"},
        {"password": "hunter2"},
        {"properties": {"sasl.password": "hunter2", "nested": [{"ssl.key.password": "hunter2"}]}},
        {"error": ValueError("cannot use mysql://relay:hunter2@db/shop")},
        {"error": ConfigurationError("sasl.password='hunter2'")},
        {"raw": b"mysql://relay:hunter2@db/shop"},
        {"several": {"mysql://relay:hunter2@db/shop"}},
        {"pair": ("a", "sasl.password=hunter2")},
    ],
)
def test_no_field_shows_a_secret(form: str, fields: dict[str, Any]) -> None:
    stream = configured(format=form)
    log.warning("with a secret", **fields)
    assert "hunter2" not in stream.getvalue()
    assert "***" in stream.getvalue()


@pytest.mark.parametrize("form", ["json", "console"])
def test_no_traceback_shows_a_secret(form: str) -> None:
    stream = configured(format=form)
    url = "mysql://relay:" + "hunter2" + "@db/shop"
    try:
        raise ValueError(f"cannot connect to {url}")
    except ValueError:
        log.exception("failed", action="fail")
        logging.getLogger("library").exception("failed")
    shown = stream.getvalue()
    assert shown.count("Traceback") == 2
    assert shown.count("ValueError: cannot connect to mysql://relay:***@db/shop") == 2
    assert "hunter2" not in shown.replace('"hunter2"', "").replace('\\"hunter2\\"', "")  # the source line above


@pytest.mark.parametrize(
    "value",
    [
        float("nan"),
        float("inf"),
        object(),
        b"\xff\xfe",
        {1: 2},
        {"a", "b"},
        datetime(2026, 1, 2),
        "\ud800",
        None,
        "汉😀",
    ],
)
def test_every_value_makes_a_line_of_strict_json(value: object) -> None:
    stream = configured(format="json")
    log.info("value", value=value)
    (line,) = stream.getvalue().splitlines()

    def refuse(constant: str) -> None:
        pytest.fail(f"{constant} is not JSON")

    assert "value" in json.loads(line, parse_constant=refuse)


def test_a_long_text_is_cut_in_the_middle_after_it_was_masked() -> None:
    stream = configured(format="json")
    secret_at_the_cut = (
        "x" * (MAX_TEXT // 2 - 20) + " mysql://relay:hunter2hunter2@db/shop " + "y" * 100_000 + "the end"
    )
    log.info("long", text=secret_at_the_cut, nested={"list": ["z" * 100_000]})
    (record,) = records(stream)
    assert len(record["text"]) < MAX_TEXT + 100
    assert record["text"].endswith("the end")
    assert "characters left out" in record["text"]
    assert "hunter" not in record["text"]
    assert len(record["nested"]["list"][0]) < MAX_TEXT + 100


def test_a_record_without_an_action_is_not_taken_for_a_librarys() -> None:
    stream = configured(format="json")
    log.info("100 % done")
    (record,) = records(stream)
    assert record["event"] == "100 % done"
    assert "action" not in record


def test_a_console_line_has_the_sentence_first_and_the_traceback_below() -> None:
    stream = configured(format="console")
    try:
        raise ValueError("no such thing")
    except ValueError:
        log.exception("it failed", action="fail", attempt=3)
    first, *below = stream.getvalue().splitlines()
    assert first.index("error") < first.index("it failed") < first.index("action=fail") < first.index("attempt=3")
    assert below[0].startswith("Traceback")
    assert below[-1] == "ValueError: no such thing"


def test_configuring_again_replaces_and_does_not_double() -> None:
    first = configured(format="json")
    second = configured(format="json")
    log.info("once")
    assert first.getvalue() == ""
    assert len(records(second)) == 1


# --- once per kind --------------------------------------------------------------------------------------------------


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_kind_is_logged_once_however_often_it_happens() -> None:
    stream = configured(format="json")
    once = OncePerKind(log)
    said = [once.warning(kind, "unknown event; left to the sweep", action="skip") for kind in "aabbab"]
    assert said == [True, False, True, False, False, False]
    assert [(line["kind"], line["level"], line["event"]) for line in records(stream)] == [
        ("a", "warning", "unknown event; left to the sweep"),
        ("b", "warning", "unknown event; left to the sweep"),
    ]


def test_an_error_is_once_per_kind_too() -> None:
    stream = configured(format="json")
    OncePerKind(log).error("a", "broken")
    (record,) = records(stream)
    assert (record["event"], record["kind"], record["level"]) == ("broken", "a", "error")


def test_a_kind_that_goes_on_is_said_again_after_the_interval_with_the_number_left_out() -> None:
    clock = Clock()
    once = OncePerKind(log, every_s=60, clock=clock)
    stream = configured(format="json")
    once.warning("a", "x")
    for _ in range(3):
        clock.now += 19
        once.warning("a", "x")
    clock.now += 3
    assert once.warning("a", "x")
    clock.now += 60
    assert once.warning("a", "x")
    assert [line.get("left_out") for line in records(stream)] == [None, 3, None]


def test_ever_new_kinds_stay_bounded() -> None:
    stream = configured(format="json")
    once = OncePerKind(log)
    for number in range(2 * OncePerKind.MAX_KINDS):
        once.warning(f"kind {number}", "x")
    assert not once.warning("kind 0", "x")
    said = records(stream)
    assert len(said) == OncePerKind.MAX_KINDS + 1
    assert said[-1]["kind"] == "other"
