"""``cdc-consumer``: help that teaches, errors of one line and a hint, and exit codes that tell their class."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from cdc_relay import __version__
from cdc_relay.errors import DatabaseError, KafkaError, RelayError
from consumer import cli, service

GIVEN = ["--database-url", "mysql://root:hunter2@127.0.0.1:1/d", "--bootstrap-servers", "127.0.0.1:1"]
RUNNER = CliRunner()


@pytest.fixture
def end(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """Runs ``main``; gives the exit code and what was written to stderr."""

    def run(*argv: str) -> tuple[object, str]:
        monkeypatch.setattr(sys, "argv", ["cdc-consumer", *argv])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return ended.value.code, capsys.readouterr().err

    return run


@pytest.mark.parametrize("command", ["run", "check"])
def test_each_command_teaches(command: str) -> None:
    helped = RUNNER.invoke(cli.app, [command, "--help"], env={"COLUMNS": "120"})
    assert helped.exit_code == 0
    assert f"Example:\n      cdc-consumer {command}" in helped.output
    assert re.search(r"[Ee]xit codes", helped.output)
    for option in ("--config", "--database-url", "--bootstrap-servers", "--topics", "--group-id", "--debug"):
        assert option in helped.output


def test_the_version_is_told() -> None:
    told = RUNNER.invoke(cli.app, ["--version"])
    assert (told.exit_code, told.output) == (0, f"cdc-consumer {__version__}\n")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["run"], "database.url"),
        (["run", *GIVEN], "consumer.topics is required"),
        (["run", *GIVEN, "--topics", "a b"], "no legal Kafka topic"),
        (["run", *GIVEN, "--topics", "t", "--admin-port", "70000"], "admin.port"),
        (["run", *GIVEN, "--topics", "t", "--log-level", "loud"], "log.level"),
        (["check", "--config", "/does/not/exist.toml"], "/does/not/exist.toml"),
        (["runn"], "No such command"),
    ],
)
def test_a_wrong_setting_or_argument_is_named_and_ends_with_2(end: Any, arguments: list[str], says: str) -> None:
    code, said = end(*arguments)
    assert code == 2
    assert says in said
    assert "hunter2" not in said
    assert "Traceback" not in said


@pytest.mark.parametrize(
    ("error", "code", "says"),
    [
        (DatabaseError("no table", hint="make it"), 3, "error: no table\nhint: make it\n"),
        (KafkaError("no broker"), 4, "error: no broker\n"),
        (RelayError("mysql://a:hunter2@db/d is odd"), 1, "error: mysql://a:***@db/d is odd\n"),
        (
            KeyError("nobody thought of this"),
            1,
            "error: unexpected KeyError: 'nobody thought of this'\n"
            "hint: run with --debug for the traceback, and report it\n",
        ),
    ],
)
def test_an_error_is_one_line_and_a_hint_and_has_its_own_exit_code(
    end: Any, monkeypatch: pytest.MonkeyPatch, error: Exception, code: int, says: str
) -> None:
    def fail(_: service.Service) -> None:
        raise error

    monkeypatch.setattr(service.Service, "check", fail)
    assert end("check", *GIVEN, "--topics", "t") == (code, says)
    debugged_code, said = end("check", *GIVEN, "--topics", "t", "--debug")
    assert debugged_code == code
    assert "Traceback" in said
    assert "hunter2" not in said


def test_topics_may_come_from_several_options_or_the_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen: list[list[str]] = []
    monkeypatch.setattr(service.Service, "check", lambda self: seen.append(self._settings.consumer.topics))
    config = tmp_path / "consumer.toml"
    config.write_text('[consumer]\ntopics = ["from-file"]\n')
    RUNNER.invoke(cli.app, ["check", *GIVEN, "--config", str(config)], catch_exceptions=False)
    RUNNER.invoke(cli.app, ["check", *GIVEN, "--config", str(config), "--topics", "a", "--topics", "b"])
    assert seen == [["from-file"], ["a", "b"]]


def test_help_does_not_load_what_only_a_run_needs() -> None:
    program = (
        "import sys, consumer.cli; "
        "print([m for m in ('confluent_kafka', 'sqlalchemy', 'pydantic', 'consumer.service') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
