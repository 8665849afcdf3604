"""The image and the compose file, as far as they can be tried without a Docker engine: that they mean something, that
their command lines run from the built wheel, and that their accounts and settings suffice on a real server."""

from __future__ import annotations

import configparser
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from sqlalchemy import create_engine, make_url, text

from cdc_relay.config_layers import load
from cdc_relay.embedded.kafka import MockKafka
from cdc_relay.embedded.mysql import MysqlServer
from cdc_relay.preflight.check import Level
from cdc_relay.preflight.report import check_everything
from cdc_relay.tables import create_missing

ROOT = Path(__file__).parents[2]
DOCKER = ROOT / "docker"
DOCKERFILE = (DOCKER / "Dockerfile").read_text()
COMPOSE: dict[str, Any] = yaml.safe_load((DOCKER / "compose.yaml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
OURS = {name: service for name, service in SERVICES.items() if service.get("image") == "cdc-relay"}


def interpolated(value: str) -> str:
    """As compose reads ``${NAME:-default}`` with no environment, and ``$$``."""
    return re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", value).replace("$$", "$")


def environment(service: dict[str, Any]) -> dict[str, str]:
    given = {name: interpolated(str(value)) for name, value in service.get("environment", {}).items()}
    image = dict(re.findall(r"(CDC_\w+)=(\S+)", DOCKERFILE))
    return image | given


def seconds(span: str) -> float:
    return float(span.removesuffix("s"))


# --- the compose file ------------------------------------------------------------------------------------------------


def test_everything_that_is_asked_for_is_there() -> None:
    assert {"mysql", "kafka", "relay", "consumer"} <= SERVICES.keys()
    assert set(OURS) == {"tables", "relay", "consumer"}


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_depends_on_what_exists_and_can_meet_the_condition(name: str) -> None:
    for other, how in SERVICES[name].get("depends_on", {}).items():
        assert other in SERVICES
        match how["condition"]:
            case "service_healthy":
                assert "healthcheck" in SERVICES[other]
            case "service_completed_successfully":
                assert SERVICES[other]["restart"] == "no"
            case condition:
                assert condition == "service_started"


@pytest.mark.parametrize("name", SERVICES)
def test_mounts_are_of_files_or_declared_volumes(name: str) -> None:
    for mount in SERVICES[name].get("volumes", []):
        source = mount.split(":")[0]
        assert source in COMPOSE["volumes"] or (DOCKER / source).is_file(), mount


@pytest.mark.parametrize("name", SERVICES)
def test_ports_are_published_on_loopback_only(name: str) -> None:
    assert all(port.startswith("127.0.0.1:") for port in SERVICES[name].get("ports", []))


@pytest.mark.parametrize("name", ["relay", "consumer"])
def test_the_programs_are_probed_and_have_time_to_stop(name: str) -> None:
    service = SERVICES[name]
    [drain] = [word.partition("=")[2] for word in service["command"] if word.startswith("--drain-timeout")]
    assert seconds(service["stop_grace_period"]) > float(drain) + 5
    port = {"relay": 9464, "consumer": 9465}[name]
    assert f"127.0.0.1:{port}/readyz" in service["healthcheck"]["test"][-1]
    assert service["ports"] == [f"127.0.0.1:{port}:{port}"]
    assert service["restart"] == "unless-stopped"


def test_the_checkpoint_outlives_the_container() -> None:
    path = Path(environment(SERVICES["relay"])["CDC_CHECKPOINT__PATH"])
    assert f"checkpoints:{path.parent}" in SERVICES["relay"]["volumes"]


@pytest.mark.parametrize("name", OURS)
def test_the_settings_of_a_service_are_accepted(name: str) -> None:
    variables = {"CDC_KAFKA__BOOTSTRAP_SERVERS": "unused"} | environment(OURS[name])
    settings = load(environ={key: value for key, value in variables.items() if key.startswith("CDC_")})
    assert settings.database.parsed.host == "mysql"
    assert settings.admin.host == "0.0.0.0"
    if name == "consumer":
        assert settings.consumer.topics == ["chat-history"]


def test_prometheus_scrapes_both_programs() -> None:
    jobs = yaml.safe_load((DOCKER / "prometheus.yml").read_text())["scrape_configs"]
    assert {target for job in jobs for each in job["static_configs"] for target in each["targets"]} == {
        "relay:9464",
        "consumer:9465",
    }


# --- the image -------------------------------------------------------------------------------------------------------


def test_the_image_does_not_run_as_root() -> None:
    last_stage = DOCKERFILE[DOCKERFILE.rindex("\nFROM ") :]
    [user] = re.findall(r"^USER (\S+)$", last_stage, re.MULTILINE)
    assert user.split(":")[0] not in ("root", "0")


def test_what_is_copied_exists_and_is_not_ignored() -> None:
    allowed = [line[1:] for line in (DOCKER / "Dockerfile.dockerignore").read_text().splitlines() if line[:1] == "!"]
    copied = re.findall(r"^COPY (?!--from)(.+) \S+$", DOCKERFILE, re.MULTILINE)
    for source in " ".join(copied).split():
        assert (ROOT / source).exists(), source
        assert source in allowed


def test_images_are_named_without_a_registry() -> None:
    names = re.findall(r"^FROM (\S+)", DOCKERFILE, re.MULTILINE)
    names += [service["image"] for service in SERVICES.values()]
    for name in names:
        assert "." not in name.split("/")[0] or "/" not in name, f"{name} names a registry"
        assert name == "cdc-relay" or ":" in name, f"{name} has no version"


@pytest.fixture(scope="module")
def clean_venv(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The programs installed from their wheel, as the image has them; the libraries are those of this environment."""
    folder = tmp_path_factory.mktemp("image")
    source = folder / "source"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in ("cdc_relay", "consumer"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)], cwd=source, check=True
    )
    [wheel] = folder.glob("*.whl")
    home = folder / "venv"
    try:
        venv.create(home, with_pip=True)
    except subprocess.CalledProcessError:
        pytest.skip("this Python has no ensurepip: apt-get install python3-venv")
    python = home / "bin/python"
    subprocess.run([python, "-m", "pip", "install", "-q", "--no-deps", "--no-index", str(wheel)], check=True)
    [packages] = (home / "lib").glob("python3*/site-packages")
    (packages / "libraries.pth").write_text(sysconfig.get_path("purelib") + "\n")
    yield home


def in_clean_venv(home: Path, *argv: str, **variables: str) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("CDC_", "PYTHON"))}
    path = f"{home / 'bin'}{os.pathsep}{clean['PATH']}"
    return subprocess.run(
        argv, capture_output=True, text=True, timeout=60, check=False, cwd=home, env=clean | {"PATH": path} | variables
    )


def test_the_wheel_holds_both_programs_and_the_watchdog(clean_venv: Path) -> None:
    shown = in_clean_venv(
        clean_venv,
        "python",
        "-c",
        "import cdc_relay, consumer, pathlib; home = pathlib.Path(cdc_relay.__file__).parent; "
        "print(home, (home / 'embedded/watchdog.py').exists(), (home / 'py.typed').exists(), consumer.__file__)",
    )
    assert shown.returncode == 0, shown.stderr
    home, watchdog, typed, consumer = shown.stdout.split()
    assert home.startswith(str(clean_venv))
    assert consumer.startswith(str(clean_venv))
    assert (watchdog, typed) == ("True", "True")


@pytest.mark.parametrize("name", OURS)
def test_the_command_lines_of_the_services_are_understood(clean_venv: Path, name: str) -> None:
    helped = in_clean_venv(clean_venv, *OURS[name]["command"], "--help")
    assert helped.returncode == 0, helped.stderr
    assert "Usage:" in helped.stdout


def test_the_command_of_the_image_runs(clean_venv: Path) -> None:
    [command] = re.findall(r"^CMD (\[.+\])$", DOCKERFILE, re.MULTILINE)
    argv = yaml.safe_load(command)
    started = in_clean_venv(clean_venv, *argv)
    assert started.returncode == 2
    assert "database.url is required" in started.stderr
    assert in_clean_venv(clean_venv, argv[0], "--version").stdout.startswith("cdc-relay ")


def test_the_first_service_makes_the_tables(clean_venv: Path, mysql_server: MysqlServer) -> None:
    root = create_engine(mysql_server.url, isolation_level="AUTOCOMMIT")
    with root.connect() as connection:
        connection.execute(text("DROP DATABASE IF EXISTS app"))
        connection.execute(text("CREATE DATABASE app"))
    url = make_url(mysql_server.url).set(database="app").render_as_string(hide_password=False)
    made = in_clean_venv(clean_venv, *OURS["tables"]["command"], CDC_DATABASE__URL=url)
    assert made.stdout.count("created") == 3, made.stderr
    with root.connect() as connection:
        connection.execute(text("DROP DATABASE app"))
    root.dispose()


# --- MySQL's settings and accounts -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def configured() -> Iterator[MysqlServer]:
    """A MySQL with the settings of docker/mysql, the tables and the accounts, in the order of the compose file."""
    parser = configparser.ConfigParser()
    parser.read(DOCKER / "mysql/cdc-relay.cnf")
    with MysqlServer(flavour="mysql", database="app", options=dict(parser["mysqld"])) as server:
        settings = load({"database.url": server.url, "kafka.bootstrap_servers": "unused"}, environ={})
        create_missing(settings.database)
        engine = create_engine(server.url, isolation_level="AUTOCOMMIT")
        sql = re.sub(r"^--.*$", "", (DOCKER / "mysql/accounts.sql").read_text(), flags=re.MULTILINE)
        with engine.connect() as connection:
            for statement in filter(None, map(str.strip, sql.split(";"))):
                connection.execute(text(statement))
        engine.dispose()
        yield server


def url_of(name: str, server: MysqlServer) -> str:
    given = make_url(environment(OURS[name])["CDC_DATABASE__URL"])
    return given.set(host=server.host, port=server.port).render_as_string(hide_password=False)


def test_the_relays_account_and_mysqls_settings_suffice(configured: MysqlServer) -> None:
    with MockKafka() as kafka:
        flags = {"database.url": url_of("relay", configured), "kafka.bootstrap_servers": kafka.bootstrap_servers}
        mysql, broker = check_everything(load(flags, environ={}))
    assert [check for check in mysql + broker if check.level is not Level.OK] == []


def test_the_consumers_account_suffices(configured: MysqlServer) -> None:
    with MockKafka() as kafka:
        checked = subprocess.run(
            [sys.executable, "-m", "consumer.cli", "check", "--topics", "chat-history"],
            env={
                **os.environ,
                "CDC_DATABASE__URL": url_of("consumer", configured),
                "CDC_KAFKA__BOOTSTRAP_SERVERS": kafka.bootstrap_servers,
            },
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
    assert checked.returncode == 0, checked.stderr
