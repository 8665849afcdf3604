"""``cdc-consumer``: errors are one line on stderr, and exit codes tell their class."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cdc_relay.errors import DatabaseError, KafkaError, RelayError
from consumer import service
from consumer.cli import app

GIVEN = ["--database-url", "mysql://root:hunter2@127.0.0.1:1/d", "--bootstrap-servers", "127.0.0.1:1"]


@pytest.fixture
def run() -> CliRunner:
    return CliRunner()


@pytest.mark.parametrize("command", ["run", "check"])
def test_help_names_the_options(run: CliRunner, command: str) -> None:
    result = run.invoke(app, [command, "--help"], env={"COLUMNS": "200", "NO_COLOR": "1", "TERM": "dumb"})
    assert result.exit_code == 0
    for option in ("--config", "--database-url", "--bootstrap-servers", "--topics", "--group-id", "--debug"):
        assert option in result.output


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["run"], "database.url"),
        (["run", *GIVEN], "consumer.topics is required"),
        (["run", *GIVEN, "--topics", "a b"], "no legal Kafka topic"),
        (["run", *GIVEN, "--topics", "t", "--admin-port", "70000"], "admin.port"),
        (["run", *GIVEN, "--topics", "t", "--log-level", "loud"], "log.level"),
        (["check", "--config", "/does/not/exist.toml"], "/does/not/exist.toml"),
    ],
)
def test_a_wrong_setting_is_one_line_and_exit_code_2(run: CliRunner, arguments: list[str], says: str) -> None:
    result = run.invoke(app, arguments)
    assert result.exit_code == 2
    assert says in result.stderr
    assert result.stderr.count("\n") == 1
    assert "hunter2" not in result.output


@pytest.mark.parametrize(("error", "code"), [(DatabaseError("no table\nat all"), 3), (KafkaError("no broker"), 4)])
def test_an_error_is_one_line_and_its_own_exit_code(
    run: CliRunner, monkeypatch: pytest.MonkeyPatch, error: RelayError, code: int
) -> None:
    def fail(_: service.Service) -> None:
        raise error

    monkeypatch.setattr(service.Service, "check", fail)
    result = run.invoke(app, ["check", *GIVEN, "--topics", "t"])
    assert (result.exit_code, result.stderr.count("\n")) == (code, 1)
    assert "Traceback" not in result.stderr
    result = run.invoke(app, ["check", *GIVEN, "--topics", "t", "--debug"])
    assert result.exit_code == code
    assert "Traceback" in result.stderr


def test_topics_may_come_from_several_options_or_the_file(
    run: CliRunner, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    seen: list[list[str]] = []
    monkeypatch.setattr(service.Service, "check", lambda self: seen.append(self._settings.consumer.topics))
    config = tmp_path / "consumer.toml"
    config.write_text('[consumer]\ntopics = ["from-file"]\n')
    run.invoke(app, ["check", *GIVEN, "--config", str(config)], catch_exceptions=False)
    run.invoke(app, ["check", *GIVEN, "--config", str(config), "--topics", "a", "--topics", "b"])
    assert seen == [["from-file"], ["a", "b"]]


def test_help_does_not_load_what_only_a_run_needs() -> None:
    program = (
        "import sys, consumer.cli; "
        "print([m for m in ('confluent_kafka', 'sqlalchemy', 'pydantic', 'consumer.service') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
