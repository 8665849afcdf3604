"""Which programs are taken, how they are called, and what is said when there is none."""

from __future__ import annotations

import hashlib
import struct
from pathlib import Path

import pytest

from cdc_relay.embedded import java, kafka_files, mysql, mysql_program
from cdc_relay.embedded.java import Java
from cdc_relay.embedded.kafka import KafkaBroker
from cdc_relay.embedded.mysql import MysqlServer
from cdc_relay.embedded.mysql_program import Program
from cdc_relay.errors import MissingTool


@pytest.fixture
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with nothing on PATH and nothing in the cache; the returned folder is its PATH."""
    path = tmp_path / "bin"
    path.mkdir()
    monkeypatch.setenv("PATH", str(path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("JAVA_HOME", raising=False)
    monkeypatch.setattr(mysql_program, "SYSTEM_FOLDERS", str(path))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    return path


def program(path: Path, says: str, *, to: int = 1) -> Path:
    path.write_text(f"#!/bin/sh\necho '{says}' >&{to}\n")
    path.chmod(0o755)
    return path


@pytest.mark.parametrize(
    ("server", "install"),
    [
        (MysqlServer(), "mysql-server"),
        (MysqlServer(flavour="mariadb"), "apt-get install mariadb-server-core"),
        (KafkaBroker(), "apt-get install default-jre-headless maven"),
    ],
)
def test_what_is_missing_is_told_with_the_command_that_installs_it(
    bare: Path, server: MysqlServer | KafkaBroker, install: str
) -> None:
    with pytest.raises(MissingTool) as caught:
        server.start()
    assert install in str(caught.value)
    assert list((bare.parent / "tmp").iterdir()) == []


def test_a_mysqld_on_path_is_taken_when_it_is_recent_enough(bare: Path) -> None:
    program(bare / "mysqld", "/usr/sbin/mysqld  Ver 5.7.44 for Linux on x86_64 (MySQL Community Server (GPL))")
    with pytest.raises(MissingTool):
        mysql_program.find("auto")
    program(bare / "mysqld", "/usr/sbin/mysqld  Ver 8.0.43 for Linux on x86_64 (MySQL Community Server - GPL)")
    found = mysql_program.find("auto")
    assert (found.flavour, found.version, found.argv) == ("mysql", "8.0.43", (str(bare / "mysqld"),))


def test_a_mysqld_that_is_really_mariadb_is_known_as_such(bare: Path) -> None:
    program(bare / "mysqld", "mysqld  Ver 10.11.19-MariaDB-0+deb12u1 for debian-linux-gnu on x86_64 (Debian 12)")
    assert mysql_program.find("mariadb").flavour == "mariadb"
    assert mysql_program.find("auto").flavour == "mariadb"
    with pytest.raises(MissingTool):
        mysql_program.find("mysql")


def test_a_mysqld_under_apparmor_is_started_through_the_loader(tmp_path: Path) -> None:
    mysqld = Path("/usr/sbin/mysqld")
    assert mysql_program._unconfined(mysqld, tmp_path) == (str(mysqld),)
    (tmp_path / "usr.sbin.mysqld").touch()
    loader, program = mysql_program._unconfined(mysqld, tmp_path)
    assert Path(loader).name.startswith("ld-linux")
    assert program == str(mysqld)
    (tmp_path / "disable").mkdir()
    (tmp_path / "disable/usr.sbin.mysqld").touch()
    assert mysql_program._unconfined(mysqld, tmp_path) == (str(mysqld),)


def test_java_must_be_recent_enough(bare: Path) -> None:
    program(bare / "java", 'openjdk version "11.0.20" 2023-07-18', to=2)
    with pytest.raises(MissingTool, match="Java 17"):
        java.find_java()
    program(bare / "java", 'java version "21" 2023-09-19 LTS', to=2)
    assert java.find_java() == Java(bare / "java", "21")


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("binlog_row_image", "MINIMAL", "--binlog-row-image=MINIMAL"),
        ("sync_binlog", 0, "--sync-binlog=0"),
        ("gtid_mode", True, "--gtid-mode=ON"),
        ("performance_schema", False, "--performance-schema=OFF"),
        ("skip-name-resolve", None, "--skip-name-resolve"),
    ],
)
def test_options_become_arguments(name: str, value: str | int | bool | None, expected: str) -> None:
    assert mysql.option_argv(name, value) == expected


@pytest.mark.parametrize("name", ["lower_case_table_names", "innodb_page_size", "innodb_undo_directory"])
def test_options_that_shape_the_system_tables_are_known(name: str) -> None:
    assert mysql.BAKED_IN.fullmatch(name)


@pytest.mark.parametrize("name", ["innodb_flush_log_at_trx_commit", "sync_binlog", "innodb_buffer_pool_size"])
def test_others_can_do_with_copied_system_tables(name: str) -> None:
    assert not mysql.BAKED_IN.fullmatch(name)


def test_clients_of_an_installed_server_are_called_directly(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/mysqlbinlog").touch()
    server = MysqlServer()
    server._program = Program("mysql", "8.0.43", ("mysqld",), tmp_path)
    assert server.client("mysqlbinlog") == [str(tmp_path / "bin/mysqlbinlog")]
    with pytest.raises(MissingTool, match="mysqldump"):
        server.client("mysqldump")


def test_an_installed_mysql_keeps_out_of_the_folder_that_only_its_own_user_may_look_into(tmp_path: Path) -> None:
    assert "--secure-file-priv=NULL" in mysql.common_argv(Program("mysql", "8.0.46", ("mysqld",), tmp_path), tmp_path)
    mariadb = mysql.common_argv(Program("mariadb", "10.11.19", ("mariadbd",), tmp_path), tmp_path)
    assert not [argument for argument in mariadb if "secure" in argument], "it takes NULL for the name of a folder"


def test_a_copied_kafka_storage_is_another_cluster() -> None:
    before = "#comment\nnode.id=1\ndirectory.id=AAAA\nversion=1\ncluster.id=BBBB\n"
    after = dict(line.split("=", 1) for line in kafka_files.with_new_ids(before).splitlines()[1:])
    assert after["node.id"] == "1"
    assert after["version"] == "1"
    assert len({after["cluster.id"], after["directory.id"], "AAAA", "BBBB"}) == 4
    assert len(after["cluster.id"]) == 22
    assert not any(kafka_files.new_id().startswith("-") for _ in range(500))


def test_properties_are_written_as_java_reads_them(tmp_path: Path) -> None:
    path = tmp_path / "server.properties"
    kafka_files.write_properties(path, {"auto.create.topics.enable": False, "num.partitions": 3, "password": "a\\b"})
    assert path.read_text() == "auto.create.topics.enable=false\nnum.partitions=3\npassword=a\\\\b\n"


def test_javas_key_store_has_its_header_every_certificate_and_the_right_sum() -> None:
    store = java.java_key_store([b"first", b"second certificate"], "changeit")
    assert struct.unpack(">III", store[:12]) == (0xFEEDFEED, 2, 2)
    assert b"X.509" + struct.pack(">I", 5) + b"first" in store
    assert store[-20:] == hashlib.sha1("changeit".encode("utf-16-be") + b"Mighty Aphrodite" + store[:-20]).digest()
