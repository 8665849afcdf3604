"""What the documentation says is so: commands, settings, metrics, files, exit codes."""

from __future__ import annotations

import configparser
import importlib.util
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import typer.main

import consumer.cli
from cdc_relay import errors
from cdc_relay.bench.figures import Figure
from cdc_relay.commands import app
from cdc_relay.config_layers import load
from tests.benchmarks import results

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
PROGRAMS: dict[str, Any] = {
    "cdc-relay": typer.main.get_command(app),
    "cdc-consumer": typer.main.get_command(consumer.cli.app),
}
MAKE_TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


def blocks(page: Path, *kinds: str) -> list[str]:
    """The fenced code blocks of these kinds."""
    return [body for kind, body in re.findall(r"^```(\w*)\n(.*?)^```", page.read_text(), re.S | re.M) if kind in kinds]


def lines_of_shell() -> Iterator[tuple[Path, str]]:
    for page in PAGES:
        for block in blocks(page, "sh"):
            for line in block.splitlines():
                if line.strip() and not line.startswith("#"):
                    yield page, line


def inline_commands() -> Iterator[tuple[Path, str]]:
    for page in PAGES:
        prose = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.S | re.M)
        for words in re.findall(r"`((?:cdc-relay|cdc-consumer|make|docker compose) [^`]+)`", prose, re.S):
            yield page, " ".join(words.split())


def assert_known(line: str) -> None:
    """Fail unless each word of a command line means something."""
    program, *words = shlex.split(line, comments=True)
    match program:
        case "make":
            assert words[0] in MAKE_TARGETS
        case "docker":
            assert words[:2] == ["compose", "-f"]
            assert (ROOT / words[2]).exists()
        case "export":
            load({"kafka.bootstrap_servers": "k:1", "database.url": "mysql://h/d"}, environ=exported(line))
        case "systemctl" | "kafka-acls.sh":  # what the latter does is tried in tests/integration/test_kafka_rights.py
            pass
        case _:
            assert_options(PROGRAMS[program], words)


def assert_options(command: Any, words: list[str]) -> None:
    while words and hasattr(command, "commands"):
        names = words.pop(0)
        for name in names.split("|"):  # show|reset
            assert name in command.commands, f"no command {name!r}"
        command = command.commands[names.split("|")[0]]
    known = {option for parameter in command.params for option in parameter.opts} | {"--help"}
    for word in words:
        if word.startswith("-"):
            assert word.partition("=")[0] in known, f"no option {word}"


def exported(line: str) -> dict[str, str]:
    return dict(word.split("=", 1) for word in shlex.split(line)[1:])


@pytest.fixture(scope="module")
def generate() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs/generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_generated_parts_are_up_to_date(generate: ModuleType, page: Path) -> None:
    assert page.read_text() == generate.renewed(page.read_text()), "run: make docs"


def test_every_setting_is_told_with_what_it_is_for(generate: ModuleType) -> None:
    page = (ROOT / "docs/configuration.md").read_text()
    found = list(generate.settings())
    assert len(found) > 30
    for name, _, takes, meaning in found:
        assert f"| `{name}` | `{generate.environment_name(name)}` |" in page
        assert takes, name
        assert meaning, f"{name} has no description in config.py"


def test_figures_become_tables_with_drawings(
    generate: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generate, "DOCS", tmp_path)
    assert generate.figures() == ""
    figures = [
        Figure("foreign binlog", "2 MB", "relay", "throughput", "rows/s", (40_000.0, 36_000.0, 44_000.0)),
        Figure("foreign binlog", "2 MB", "peer", "p99", "ms", (5.0,)),
    ]
    facts = {"taken at": "2026-01-01 00:00 UTC", "machine": "2 × some processor", "mysql": "9.7"}
    results.save(tmp_path / "benchmarks/results.json", facts, figures)
    results.plot(tmp_path / "benchmarks/results.json", tmp_path / "benchmarks")
    assert generate.figures().split("\n") == [
        "Taken 2026-01-01 00:00 UTC on 2 × some processor; mysql 9.7.",
        "",
        "### Foreign binlog",
        "",
        "![foreign binlog](benchmarks/foreign-binlog.svg)",
        "",
        "| with | by | throughput, rows/s | p99, ms |",
        "| --- | --- | --- | --- |",
        "| 2 MB | relay | 40,000 (36,000 … 44,000) |  |",
        "| 2 MB | peer |  | 5 |",
    ]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_settings_variables_and_metrics_that_are_named_exist(generate: ModuleType, page: Path) -> None:
    text = page.read_text()
    settings = {name for name, *_ in generate.settings()}
    sections = {name.partition(".")[0] for name in settings if "." in name}
    for name in re.findall(r"`(" + "|".join(sections) + r")\.(\w+)`", text):
        if name[1] not in ("py", "path"):
            assert ".".join(name) in settings
    variables = {generate.environment_name(name) for name in settings} | {"CDC_CONFIG", "CDC_SECTION__NAME"}
    assert set(re.findall(r"\bCDC_[A-Z_]+\b", text)) - {"CDC_"} <= variables
    metrics = re.findall(r"^\| `(cdc_\w+)`", "".join(generate.PARTS[part]() for part in generate.PARTS), re.M)
    named = set(re.findall(r"\bcdc_(?:relay|consumer)_\w+", text)) - {"cdc_relay_"}
    assert named <= set(metrics)


@pytest.mark.parametrize(("page", "line"), [*lines_of_shell(), *inline_commands()], ids=str)
def test_every_command_line_is_known(page: Path, line: str) -> None:
    assert_known(line)


def test_a_command_line_that_is_wrong_would_be_found() -> None:
    for wrong in ("make everything", "cdc-relay runn", "cdc-relay run --databse-url x", "docker compose -f none.yaml"):
        with pytest.raises(AssertionError):
            assert_known(wrong)


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "toml")], ids=lambda page: page.name)
def test_the_examples_of_settings_are_accepted(page: Path, tmp_path: Path) -> None:
    for block in blocks(page, "toml"):
        path = tmp_path / "relay.toml"
        path.write_text(block)
        load({"database.url": "mysql://h/d", "kafka.bootstrap_servers": "k:9092"}, config=path, environ={})
    [first, *_] = blocks(ROOT / "README.md", "toml")
    path.write_text(first)
    settings = load(config=path, environ={})
    assert settings.kafka.properties["sasl.mechanism"] == "SCRAM-SHA-512"
    assert settings.consumer.topics == ["chat-history"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)]+)\)", page.read_text()):
        if link.startswith("https://"):
            continue
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), link
        if anchor:
            headings = re.findall(r"^#+ (.+)$", target.read_text(), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}


def test_files_of_the_architecture_exist() -> None:
    page = (ROOT / "docs/architecture.md").read_text()
    for program in ("cdc_relay", "consumer"):
        [part] = re.findall(rf"^{program}/\n(.*?)(?=^\S|\Z)", page, re.S | re.M)
        files = re.findall(r"\b([\w/]+\.py)\b", part)
        assert len(files) > 5
        for name in files:
            assert (ROOT / program / name).exists(), f"{program}/{name}"
    for name in re.findall(r"`([\w/]+\.py)`", page):
        assert (ROOT / "cdc_relay" / name).exists(), name
    for page_ in PAGES:
        for name in re.findall(r"`((?:cdc_relay|consumer|tests|docs|docker)/[\w/.-]*)`", page_.read_text()):
            assert (ROOT / name).exists(), name


def test_the_exit_codes_are_those_of_the_errors() -> None:
    [table] = re.findall(
        r"\| exit code \| means \|\n\| --- \| --- \|\n(.*?)\n\n", (ROOT / "README.md").read_text(), re.S
    )
    told = {int(code) for code in re.findall(r"^\| (\d+) \|", table, re.MULTILINE)}
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.RelayError)]
    assert told == {kind.exit_code for kind in kinds} | {0}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_more_than_at_least_once_is_never_promised(page: Path) -> None:
    assert not re.search(r"exactly.once", page.read_text(), re.IGNORECASE)


@pytest.mark.parametrize("name", ["cdc-relay", "cdc-consumer"])
def test_the_units_start_what_there_is_and_let_it_stop(name: str) -> None:
    unit = configparser.ConfigParser(interpolation=None)
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    unit.read(ROOT / f"docs/systemd/{name}.service")
    path, *words = shlex.split(unit["Service"]["ExecStart"])
    assert Path(path).name == name
    assert_options(PROGRAMS[name], words)
    drain_s = float(words[words.index("--drain-timeout") + 1])
    assert float(unit["Service"]["TimeoutStopSec"]) > drain_s + 5
