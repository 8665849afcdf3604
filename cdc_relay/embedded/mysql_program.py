"""Which MySQL or MariaDB program is started: the one on PATH, else one that was fetched into the cache."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cdc_relay.embedded import apt, cache
from cdc_relay.errors import MissingTool

Flavour = Literal["mysql", "mariadb"]

#: Where packages put servers, and which PATH lacks for those who are not root.
SYSTEM_FOLDERS = "/usr/local/sbin:/usr/sbin:/usr/libexec"


@dataclass(frozen=True)
class Program:
    """A server program, and how it is started."""

    flavour: Flavour
    version: str
    argv: tuple[str, ...]
    #: The folder that has ``bin``, ``sbin``, ``share`` and ``lib``.
    usr: Path
    #: The cache folder when it was fetched, None when it is the machine's own.
    fetched: Path | None = None


def find(flavour: Literal["auto", "mysql", "mariadb"]) -> Program:
    """The program on PATH, else the one in the cache, else a fetched one. Raises MissingTool."""
    for name in ("mysqld", "mariadbd"):
        path = shutil.which(name) or shutil.which(name, path=SYSTEM_FOLDERS)
        program = _described(Path(path).resolve()) if path is not None else None
        if program is not None and flavour in ("auto", program.flavour):
            return program
    if flavour != "auto":
        return _fetched(flavour)
    try:
        return _fetched("mysql")
    except MissingTool as no_mysql:
        try:
            return _fetched("mariadb")  # which every Debian release has, where MySQL is in sid only
        except MissingTool:
            raise no_mysql from None


def _fetched(flavour: Flavour) -> Program:
    binary = "usr/sbin/mysqld" if flavour == "mysql" else "usr/sbin/mariadbd"
    package = "mariadb-server-core" if flavour == "mariadb" else "mysql-server-core-8.0, or MySQL's own packages"
    try:
        root = cache.fill(flavour, _fetch_mysql if flavour == "mysql" else _fetch_mariadb)
        argv = apt.through_loader(root, root / binary)
    except MissingTool as error:
        raise MissingTool(
            f"there is no {flavour} server on PATH, and none could be fetched: {error}",
            hint=f"Install one: apt-get install {package}",
        ) from error
    return Program(flavour, _version(argv), tuple(argv), root / "usr", root)


def _described(path: Path) -> Program | None:
    """The program at ``path``, or None when it is too old for us or does not say what it is."""
    version = _version([str(path)])
    usr = path.parent.parent
    if "mariadb" in version.lower():
        return Program("mariadb", version, (str(path),), usr)
    major = re.match(r"\d+", version)
    return Program("mysql", version, _unconfined(path), usr) if major and int(major[0]) >= 8 else None


def _unconfined(path: Path, etc: Path = Path("/etc/apparmor.d")) -> tuple[str, ...]:
    """Ubuntu's AppArmor keeps ``/usr/sbin/mysqld`` from every folder but its own. The profile goes by the name of the
    program that is executed, and this executes the loader."""
    profile = str(path).lstrip("/").replace("/", ".")
    if not (etc / profile).exists() or (etc / "disable" / profile).exists():
        return (str(path),)
    loaders = [loader for top in ("/lib64", "/lib") for loader in sorted(Path(top).glob("ld-linux*.so.*"))]
    return (str(loaders[0]), str(path)) if loaders else (str(path),)


def _version(argv: Sequence[str]) -> str:
    """``mysqld  Ver 8.0.43 for Linux on x86_64`` -> ``8.0.43``; empty when it does not run."""
    try:
        done = subprocess.run(
            [*argv, "--no-defaults", "--version"], capture_output=True, text=True, timeout=30, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    match = re.search(r"Ver (\S+)", done.stdout)
    return match[1] if match else ""


def _fetch_mysql(root: Path) -> str:
    """Debian carries MySQL in sid only; Ubuntu has one in each release."""
    suite = "sid" if apt.os_release().get("ID") == "debian" else None
    return apt.fetch(r"mysql-server-core(-[\d.]+)?", root, suite=suite)


def _fetch_mariadb(root: Path) -> str:
    return apt.fetch(r"mariadb-server-core(-[\d.]+)?", root)
