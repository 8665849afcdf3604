"""A throwaway MySQL or MariaDB with row binlog, without Docker and without root."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import pymysql

from cdc_relay.embedded import apt, cache
from cdc_relay.embedded.mysql_program import Flavour, Program, find
from cdc_relay.embedded.progress import step
from cdc_relay.embedded.server import ThrowawayServer
from cdc_relay.errors import DatabaseUnavailable, MissingTool

#: Seconds that making the system tables may take.
INITIALIZE_TIMEOUT_S = 120.0


class MysqlServer(ThrowawayServer):
    """A MySQL (8.0 or later) or MariaDB that is gone after the ``with`` block::

        with MysqlServer(options={"binlog_row_image": "MINIMAL"}) as server:
            engine = sqlalchemy.create_engine(server.url)

    Row binlog on, GTID off, ``root`` without a password, 127.0.0.1 only. How durable a commit is, is the server's own
    default unless ``options`` say otherwise: MySQL flushes both redo log and binlog, MariaDB only the former.
    """

    unavailable = DatabaseUnavailable

    def __init__(
        self,
        *,
        flavour: Literal["auto", "mysql", "mariadb"] = "auto",
        database: str = "outbox",
        server_id: int = 1,
        options: Mapping[str, str | int | bool | None] | None = None,
        port: int | None = None,
        start_timeout_s: float = 120.0,
        stop_timeout_s: float = 60.0,
    ) -> None:
        """``auto`` takes whichever of the two is on PATH, MySQL first, and fetches MySQL when neither is, or MariaDB
        when MySQL is not to be had.

        ``options`` are server variables by name; True and False become ON and OFF, and None gives an option without
        a value (``{"skip_name_resolve": None}``).
        """
        super().__init__(port=port, start_timeout_s=start_timeout_s, stop_timeout_s=stop_timeout_s)
        self.name = "mysql" if flavour == "auto" else flavour
        self.database = database
        self.server_id = server_id
        self.options = dict(options or {})
        self._flavour = flavour
        self._program: Program | None = None
        self._served = False

    @property
    def flavour(self) -> Flavour:
        return self._found().flavour

    @property
    def server_version(self) -> str:
        """As the program tells it, such as ``9.7.4`` or ``10.11.18-MariaDB``."""
        return self._found().version

    @property
    def url(self) -> str:
        """For SQLAlchemy; ``root`` has no password."""
        return f"mysql+pymysql://root@{self.host}:{self.port}/{self.database}"

    def error_log(self, lines: int = 30) -> str:
        """The last lines of the error log."""
        return self.log_tail(lines)

    def client(self, tool: str) -> list[str]:
        """The argv that starts a program that comes with the server, such as ``mysqlbinlog``. Raises MissingTool."""
        program = self._found()
        for folder in ("bin", "sbin"):
            path = program.usr / folder / tool
            if path.exists():
                return apt.through_loader(program.fetched, path) if program.fetched else [str(path)]
        raise MissingTool(f"{tool} does not come with {program.flavour} {program.version}")

    # -- how it is started

    def _prepare(self, home: Path) -> None:
        self._program = find(self._flavour)
        self._served = False
        (home / "tmp").mkdir()
        make_data_dir(self._program, home, self._options())
        # Not in the binlog: a replica of this server has them from its own first start.
        (home / "first.sql").write_text(
            "SET SESSION sql_log_bin = 0;\n"
            f"CREATE DATABASE IF NOT EXISTS `{self.database}` CHARACTER SET utf8mb4;\n"
            "CREATE USER IF NOT EXISTS root@'127.0.0.1';\n"
            "GRANT ALL ON *.* TO root@'127.0.0.1' WITH GRANT OPTION;\n",
            encoding="utf-8",
        )

    def _argv(self) -> Sequence[str]:
        argv = [
            *common_argv(self._found(), self.home),
            f"--port={self.port}",
            *(option_argv(name, value) for name, value in self._options().items()),
        ]
        return argv if self._served else [*argv, f"--init-file={self.home / 'first.sql'}"]

    def _options(self) -> dict[str, str | int | bool | None]:
        given = {name.replace("-", "_"): value for name, value in self.options.items()}
        mysql = self._found().flavour == "mysql"
        # MySQL writes rows by default and warns of the option; MariaDB's default is MIXED. ``loose``, because MySQL
        # before 8.0.30 lacks the one, and may be built without the other.
        own: dict[str, str | int | bool | None] = (
            {"loose_mysqlx": "OFF", "loose_innodb_redo_log_capacity": "32M"} if mysql else {"binlog_format": "ROW"}
        )
        own |= {
            "server_id": self.server_id,
            "log_bin": "binlog",
            "bind_address": self.host,
            # Relative to the data folder, so that a long temporary folder does not break the limit of 107 bytes.
            "socket": "mysql.sock",
            "pid_file": "mysql.pid",
            "tmpdir": str(self.home / "tmp"),
            "innodb_buffer_pool_size": "64M",
            # The default of 4000 makes MySQL's performance schema take 100 MB more.
            "table_open_cache": 400,
            "table_definition_cache": 400,
        }
        return own | given

    def _is_ready(self) -> bool:
        try:
            pymysql.connect(host=self.host, port=self.port, user="root", connect_timeout=1, read_timeout=1).close()
        except pymysql.MySQLError as error:
            # 2000 to 2999 are the client's own: nobody there. With any other the server itself has spoken.
            self._served = bool(error.args) and isinstance(error.args[0], int) and not 2000 <= error.args[0] < 3000
        else:
            self._served = True
        return self._served

    def _found(self) -> Program:
        if self._program is None:
            raise DatabaseUnavailable(f"{self.name} is not started")
        return self._program


def option_argv(name: str, value: str | int | bool | None) -> str:
    option = "--" + name.replace("_", "-")
    if value is None:
        return option
    return f"{option}={('OFF', 'ON')[value] if isinstance(value, bool) else value}"


def common_argv(program: Program, home: Path) -> list[str]:
    argv = [*program.argv, "--no-defaults", f"--datadir={home / 'data'}"]
    if program.fetched is not None:
        share = next(path for path in (program.usr / "share/mysql", program.usr / "share/mariadb") if path.is_dir())
        argv += [
            f"--basedir={program.usr}",
            f"--lc-messages-dir={share}",
            f"--character-sets-dir={share / 'charsets'}",
            f"--plugin-dir={program.usr / 'lib/mysql/plugin'}",
        ]
    if program.flavour == "mysql":
        # Its default folder is made by the installer, which may not have run, and only mysqld's own user may look into.
        argv.append("--secure-file-priv=NULL")
    if os.geteuid() == 0:
        argv.append("--user=root")
    return argv


#: Variables that only take effect when the system tables are made, or must be the same then.
BAKED_IN = re.compile(
    r"lower_case_table_names|innodb_(page_size|data_.*|undo_.*|log_.*_dir|log_file.*|directories)|init_.*"
)


def make_data_dir(program: Program, home: Path, options: Mapping[str, str | int | bool | None]) -> None:
    """Make ``home/data``. MySQL's system tables take it two seconds, so they are made once and copied from the cache,
    less ``auto.cnf``: each server gives itself a ``server_uuid`` of its own. MariaDB takes a fraction of that."""
    if program.flavour == "mariadb" or any(BAKED_IN.fullmatch(name) for name in options):
        initialize(program, home, options)
        return

    def build(part: Path) -> str:
        with step(f"making the system tables of {program.flavour} {program.version}, once"):
            initialize(program, part, {})
        (part / "data/auto.cnf").unlink()
        return program.version

    shutil.copytree(cache.fill("mysql-data", build, version=program.version) / "data", home / "data")


def initialize(program: Program, home: Path, options: Mapping[str, str | int | bool | None]) -> None:
    """Make the system tables in ``home/data``. Raises DatabaseUnavailable with what the server wrote."""
    given = [option_argv(name, value) for name, value in options.items() if name != "init_file"]
    if program.flavour == "mysql":
        given.append("--loose-innodb-redo-log-capacity=32M")
    argv = common_argv(program, home)
    script = None
    if program.flavour == "mysql":
        argv += [*given, "--skip-log-bin", "--initialize-insecure"]
    else:
        (home / "data").mkdir()
        argv += [*given, "--skip-log-bin", "--bootstrap", "--log-warnings=0", "--enforce-storage-engine="]
        script = _mariadb_system_tables(program)
    try:
        done = subprocess.run(argv, input=script, capture_output=True, timeout=INITIALIZE_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired as expired:
        raise DatabaseUnavailable(f"{program.flavour} made no data folder in {INITIALIZE_TIMEOUT_S:g} s") from expired
    if done.returncode != 0:
        said = (done.stderr + done.stdout).decode("utf-8", "replace").strip()
        raise DatabaseUnavailable(f"{program.flavour} could not make its data folder:\n{said[-3000:]}")


def _mariadb_system_tables(program: Program) -> bytes:
    """What mariadb-install-db feeds to the server. That script cannot start one through another loader."""
    share = next((path for path in (program.usr / "share/mariadb", program.usr / "share/mysql") if path.is_dir()), None)
    if share is None:
        raise MissingTool(f"the system tables of MariaDB are not under {program.usr}")
    parts = [b"create database if not exists mysql;\nuse mysql;\nSET @auth_root_socket=NULL;\n"]
    for name in ("system_tables", "performance_tables", "system_tables_data", "sys_schema"):
        path = next(
            (path for path in (share / f"mariadb_{name}.sql", share / f"mysql_{name}.sql") if path.exists()), None
        )
        if path is not None:
            parts.append(path.read_bytes())
    return b"\n".join(parts)
