"""The command line itself: help, last words, exit codes, signals, and what a start imports. No services."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main
from typer.testing import CliRunner

from cdc_relay import __version__, cli
from cdc_relay.commands import app
from cdc_relay.errors import CheckpointError, ConfigurationError, DatabaseError, KafkaUnavailable, RelayError

RUNNER = CliRunner()


def commands(at: Any = None, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Every command that can be given, by its words."""
    at = at or typer.main.get_command(app)
    for name, command in getattr(at, "commands", {}).items():
        yield from commands(command, (*path, name))
    if not hasattr(at, "commands"):
        yield path


def run(*argv: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("CDC_")}
    return subprocess.run(
        [sys.executable, "-m", "cdc_relay", *argv],
        capture_output=True,
        text=True,
        timeout=60,
        env=clean | (env or {}),
        check=False,
    )


@pytest.fixture
def ends_with(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """Runs ``main`` with a command that raises; gives the exit code and what was written to stderr."""

    def end(error: BaseException, *argv: str) -> tuple[object, str]:
        def fail(**_: object) -> None:
            raise error

        monkeypatch.setattr("cdc_relay.commands.app", fail)
        monkeypatch.setattr(sys, "argv", ["cdc-relay", "run", *argv])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return ended.value.code, capsys.readouterr().err

    return end


def test_the_version_is_told() -> None:
    told = run("--version")
    assert (told.returncode, told.stdout) == (0, f"cdc-relay {__version__}\n")


@pytest.mark.parametrize("path", [path for path in commands() if path[0] != "stack"], ids=" ".join)
def test_each_command_teaches(path: tuple[str, ...]) -> None:
    helped = RUNNER.invoke(app, [*path, "--help"], env={"COLUMNS": "120"})
    assert helped.exit_code == 0
    assert re.search(r"Examples?:\n +cdc-relay " + " ".join(path), helped.output), "no example of its own"
    assert re.search(r"[Ee]xit codes", helped.output)


def test_every_command_that_was_asked_for_is_there() -> None:
    assert {" ".join(path) for path in commands()} >= {
        *("init-db", "run", "tail", "sweep", "status", "check", "demo", "bench"),
        *("checkpoint show", "checkpoint reset", "dead list", "dead requeue", "dead discard"),
        *("stack up", "stack down", "stack status"),
    }


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (RelayError("it is so", hint="do this"), 1),
        (ConfigurationError("it is so", hint="do this"), 2),
        (DatabaseError("it is so", hint="do this"), 3),
        (KafkaUnavailable("it is so", hint="do this"), 4),
        (CheckpointError("it is so", hint="do this"), 6),
    ],
)
def test_an_error_of_ours_is_one_line_with_a_hint_and_its_code(ends_with: Any, error: RelayError, code: int) -> None:
    assert ends_with(error) == (code, "error: it is so\nhint: do this\n")


def test_an_unexpected_error_is_one_line_and_code_1(ends_with: Any) -> None:
    code, said = ends_with(KeyError("nobody thought of this"))
    assert code == 1
    assert said.splitlines() == [
        "error: unexpected KeyError: 'nobody thought of this'",
        "hint: run with --debug for the traceback, and report it",
    ]


@pytest.mark.parametrize("error", [DatabaseError("it is so"), KeyError("oops")])
def test_debug_shows_the_traceback(ends_with: Any, error: Exception) -> None:
    _, said = ends_with(error, "--debug")
    assert "Traceback" in said
    assert "Traceback" not in ends_with(error)[1]


def test_passwords_stay_out_of_last_words(ends_with: Any) -> None:
    _, said = ends_with(ValueError("mysql://relay:hunter2@db/shop"), "--debug")
    assert "hunter2" not in said
    assert "***" in said


def test_an_interrupt_before_the_start_is_no_error(ends_with: Any) -> None:
    assert ends_with(KeyboardInterrupt()) == (130, "")


@pytest.mark.parametrize(
    ("argv", "env", "says"),
    [
        (["run"], {}, "database.url is required"),
        (["run", "--database-url", "postgres://x/y"], {}, "must begin with mysql://"),
        (["run", "--admin-port", "99999"], {}, "admin.port"),
        (["run", "--log-level", "loud"], {}, "log.level"),
        (["run", "--config", "/no/such/file.toml"], {}, "/no/such/file.toml does not exist"),
        (["status"], {"CDC_DATABASE__URL": "mysql://root@db"}, "must name the database"),
        (["sweep", "--once"], {"CDC_SWEEP__INTERVAL_S": "-1"}, "sweep.interval_s"),
        (["dead", "requeue", "--all", "7"], {}, "give ids, or --all"),
        (["dead", "requeue"], {}, "give ids, or --all"),
        (["dead", "discard", "--all", "7"], {}, "give ids, or --all"),
        (["dead", "discard"], {}, "give ids, or --all"),
        (["runn"], {}, "No such command"),
    ],
)
def test_a_wrong_setting_or_argument_is_named_and_ends_with_2(argv: list[str], env: dict[str, str], says: str) -> None:
    ended = run(*argv, env=env)
    assert ended.returncode == 2, ended.stderr
    assert says in ended.stderr
    assert "Traceback" not in ended.stderr


def test_init_db_prints_its_sql_without_a_server() -> None:
    printed = run("init-db", "--print")
    assert printed.returncode == 0, printed.stderr
    for table in ("agent_outbox_messages", "chat_histories", "agent_chats"):
        assert f"CREATE TABLE IF NOT EXISTS {table} (" in printed.stdout
    assert printed.stdout.rstrip().endswith(";")


def test_the_outbox_is_created_by_the_name_that_is_set() -> None:
    printed = run("init-db", "--print", env={"CDC_DATABASE__TABLE": "outbox_of_ours"})
    assert "CREATE TABLE IF NOT EXISTS outbox_of_ours (" in printed.stdout


def test_a_checkpoint_is_shown_and_reset_without_any_server(tmp_path: Path) -> None:
    path = tmp_path / "relay.json"
    missing = run("checkpoint", "show", "--checkpoint", str(path))
    assert (missing.returncode, missing.stdout) == (1, "")
    path.write_text("half a che")
    spoilt = run("checkpoint", "show", "--checkpoint", str(path))
    assert spoilt.returncode == 6
    assert "cannot be trusted" in spoilt.stderr
    assert "removed" in run("checkpoint", "reset", "--checkpoint", str(path)).stdout
    assert "there was none" in run("checkpoint", "reset", "--checkpoint", str(path)).stdout
    assert not path.exists()


STOPPING = """
import sys, time
from cdc_relay.commands import signals
from cdc_relay.commands.signals import run_until_stopped, stop_on_signal
signals._GRACE_S = 0.1
with stop_on_signal() as stop:
    def work():
        print("working", flush=True)
        stop.wait()
        print("draining", flush=True)
        time.sleep(float(sys.argv[1]))
    run_until_stopped(work, stop, float(sys.argv[2]))
print("stopped", flush=True)
"""


def start_stopping(drain_s: float, timeout_s: float) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", STOPPING, str(drain_s), str(timeout_s)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_one_signal_lets_the_work_end_by_itself(number: signal.Signals) -> None:
    with start_stopping(0.1, 30) as program:
        assert program.stdout is not None
        assert program.stdout.readline() == "working\n"
        program.send_signal(number)
        assert program.stdout.read() == "draining\nstopped\n"
    assert program.returncode == 0


def test_a_second_signal_ends_it_at_once() -> None:
    with start_stopping(600, 600) as program:
        assert program.stdout is not None
        assert program.stderr is not None
        program.stdout.readline()
        program.send_signal(signal.SIGTERM)
        assert program.stdout.readline() == "draining\n"
        program.send_signal(signal.SIGTERM)
        assert "SIGTERM again" in program.stderr.read()
    assert program.returncode == 1


def test_a_stop_that_hangs_is_ended_after_the_drain_timeout() -> None:
    with start_stopping(600, 0.1) as program:
        assert program.stdout is not None
        assert program.stderr is not None
        program.stdout.readline()
        program.send_signal(signal.SIGTERM)
        assert "the stop is not done after 0.1 s" in program.stderr.read()
    assert program.returncode == 1


def test_what_the_work_raises_comes_out() -> None:
    from cdc_relay.commands.signals import run_until_stopped, stop_on_signal

    def work() -> None:
        raise DatabaseError("as it happened in the thread")

    with pytest.raises(DatabaseError, match="as it happened"), stop_on_signal() as stop:
        run_until_stopped(work, stop, 1.0)


def modules_after(statement: str) -> set[str]:
    """What ``statement`` imports in a new interpreter, beyond what that has by itself."""
    listed = subprocess.run(
        [
            sys.executable,
            "-c",
            f"import sys\nbefore = {{*sys.modules}}\n{statement}\nprint(*{{*sys.modules}} - before)",
        ],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return set(listed.stdout.split())


def test_importing_the_program_imports_no_library_at_all() -> None:
    loaded = modules_after("import cdc_relay.cli")
    ours = {name for name in loaded if name.partition(".")[0] in ("cdc_relay", "consumer")}
    assert ours == {"cdc_relay", "cdc_relay.cli", "cdc_relay.program"}
    assert loaded & {"typer", "typing_extensions", "asyncio", "logging", "traceback"} == set()


def test_help_imports_no_library_of_a_command() -> None:
    loaded = modules_after("import cdc_relay.cli, cdc_relay.commands")
    heavy = {"sqlalchemy", "pymysql", "confluent_kafka", "pydantic", "rich", "pymysqlreplication", "prometheus_client"}
    assert loaded & (heavy | {"asyncio", "http.server", "tenacity", "orjson", "logging"}) == set()


def test_run_imports_no_library_that_it_could_do_without() -> None:
    loaded = modules_after("import cdc_relay.commands, cdc_relay.kafka.publisher, cdc_relay.service, cdc_relay.logs")
    # What makes tables, colours and progress bars is for other commands; logs and settings need no library of theirs.
    unwanted = {"rich", "pygments", "structlog", "pydantic_settings", "dotenv", "multiprocessing", "unittest"}
    assert loaded & (unwanted | {"sqlalchemy.orm", "sqlalchemy.ext", "confluent_kafka.schema_registry"}) == set()


def test_run_imports_nothing_that_only_the_demo_or_check_needs() -> None:
    loaded = modules_after("import cdc_relay.commands, cdc_relay.service")
    unwanted = (
        "cdc_relay.demo",
        "cdc_relay.bench",
        "cdc_relay.status",
        "cdc_relay.tables",
        "cdc_relay.preflight.report",
        "consumer",
    )
    assert [name for name in loaded if name.startswith(unwanted)] == []
    ours = {name for name in loaded if name.startswith("cdc_relay.embedded")}
    assert ours <= {"cdc_relay.embedded", "cdc_relay.embedded.cli"}
