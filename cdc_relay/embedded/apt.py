"""Debian packages without root and without installing: a private apt state, downloads, ``dpkg -x`` into a folder.

The archive's address and its key are those that the machine's own apt sources name. Nothing of the system is changed.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from cdc_relay.embedded.progress import step
from cdc_relay.errors import MissingTool

#: Seconds for one apt or dpkg command. Downloads are the slow part: some 60 MB.
APT_TIMEOUT_S = 900.0

#: Packages that mysqld and its like name but do not need to run; perl alone would be 50 MB.
NOT_NEEDED = re.compile(
    r"^(perl.*|libperl.*|libgdbm.*|libdb5.*|gcc-\d+-base|libc-gconv.*|debconf.*|cdebconf.*|dpkg|adduser|passwd"
    r"|init-system-helpers|lsb-base|mysql-common|mariadb-common|ucf|sensible-utils|coreutils|tar|util-linux)$"
)


@dataclass(frozen=True)
class AptSource:
    """One ``deb`` entry: where an archive is, which parts of it are used, and what else apt was told of it."""

    uris: tuple[str, ...]
    suites: tuple[str, ...]
    components: tuple[str, ...]
    #: Further fields under their deb822 names, such as ``Signed-By``; an inline key keeps its line breaks.
    options: tuple[tuple[str, str], ...] = field(default=())

    def deb822(self) -> str:
        fields = [
            ("Types", "deb"),
            ("URIs", " ".join(self.uris)),
            ("Suites", " ".join(self.suites)),
            ("Components", " ".join(self.components)),
            *self.options,
            # Without this, apt also loads whatever else the machine wants of an archive, such as software centre data.
            ("Targets", "Packages"),
        ]
        return "".join(f"{name}: {value}\n" for name, value in fields)


#: Options of the one-line format, under their deb822 names.
ONE_LINE_OPTIONS = {"signed-by": "Signed-By", "arch": "Architectures", "trusted": "Trusted"}
KEPT_OPTIONS = ("Signed-By", "Trusted", "Architectures")


def parse_one_line(text: str) -> list[AptSource]:
    """The ``.list`` format, see sources.list(5): ``deb [option=value …] uri suite component …``."""
    sources = []
    for line in text.splitlines():
        match = re.match(r"\s*deb\s+(?:\[([^\]]*)\]\s*)?(\S+)\s+(\S+)\s*([^#]*)", line)
        if match is None:
            continue
        options, uri, suite, components = match.groups()
        kept = []
        for option in (options or "").split():
            name, _, value = option.partition("=")
            if name.lower() in ONE_LINE_OPTIONS:
                kept.append((ONE_LINE_OPTIONS[name.lower()], value.replace(",", " ")))
        sources.append(AptSource((uri,), (suite,), tuple(components.split()), tuple(kept)))
    return sources


def parse_deb822(text: str) -> list[AptSource]:
    """The ``.sources`` format: paragraphs of ``Field: value``, a value going on in lines that begin with a blank."""
    sources = []
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    for paragraph in re.split(r"\n\s*\n", "\n".join(lines)):
        fields: dict[str, str] = {}
        name = ""
        for line in paragraph.splitlines():
            if line[:1].isspace() and name:
                fields[name] += "\n" + line
            elif ":" in line:
                name, _, value = line.partition(":")
                name = name.strip().lower()
                fields[name] = value.strip()
        if "deb" not in fields.get("types", "").split() or fields.get("enabled", "yes").lower() in ("no", "false"):
            continue
        kept = tuple((option, fields[option.lower()]) for option in KEPT_OPTIONS if option.lower() in fields)
        sources.append(
            AptSource(
                tuple(fields.get("uris", "").split()),
                tuple(fields.get("suites", "").split()),
                tuple(fields.get("components", "").split()),
                kept,
            )
        )
    return sources


def machine_sources(etc: Path = Path("/etc/apt")) -> list[AptSource]:
    """Every enabled source of this machine, in apt's own order."""
    sources: list[AptSource] = []
    for path in [etc / "sources.list", *sorted((etc / "sources.list.d").glob("*"))]:
        try:
            text = path.read_text(encoding="utf-8", errors="replace")
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError, PermissionError):
            continue
        if path.suffix == ".list":
            sources += parse_one_line(text)
        elif path.suffix == ".sources":
            sources += parse_deb822(text)
    return sources


def os_release(path: Path = Path("/etc/os-release")) -> dict[str, str]:
    """``ID``, ``VERSION_CODENAME`` and so on; empty elsewhere than on Linux."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return {}
    return {name: value.strip("\"'") for name, _, value in (line.partition("=") for line in lines) if value}


def distribution_sources(sources: Iterable[AptSource], codename: str) -> list[AptSource]:
    """Those of the distribution itself. Other people's archives name the release too, but have no updates suite and
    rarely the distribution's key, so they come last."""
    names = {codename, "stable", "testing", "unstable", "sid"} - {""}
    own = [
        source
        for source in sources
        if "main" in source.components
        and names & set(source.suites)
        and not any(uri.startswith("cdrom:") for uri in source.uris)
    ]
    return sorted(own, key=lambda source: not _looks_official(source))


def _looks_official(source: AptSource) -> bool:
    key = dict(source.options).get("Signed-By", "")
    return "debian-archive" in key or "ubuntu-archive" in key or any("-updates" in suite for suite in source.suites)


class PrivateApt:
    """apt with its own sources, lists and downloads, all inside ``folder``."""

    def __init__(self, folder: Path, sources: Sequence[AptSource]) -> None:
        self._folder = folder
        for name in ("lists/partial", "archives/partial", "parts", "debs"):
            (folder / name).mkdir(parents=True)
        (folder / "status").touch()
        (folder / "private.sources").write_text("\n".join(source.deb822() for source in sources), encoding="utf-8")
        settings = {
            "Dir::Etc::SourceList": folder / "private.sources",
            "Dir::Etc::SourceParts": folder / "parts",
            # The machine's pins are about what may be installed; here nothing is.
            "Dir::Etc::Preferences": folder / "no-preferences",
            "Dir::Etc::PreferencesParts": folder / "parts",
            "Dir::State": folder,
            "Dir::State::Lists": folder / "lists",
            "Dir::State::Status": folder / "status",
            "Dir::Cache": folder,
            "Dir::Cache::Archives": folder / "archives",
            # Root's apt would drop to a user who may not read this folder.
            "APT::Sandbox::User": "root",
            "Acquire::Languages": "none",
            "Acquire::Retries": "3",
        }
        self._options = [part for name, value in settings.items() for part in ("-o", f"{name}={value}")]

    def update(self) -> None:
        self._run(["apt-get", "-q", *self._options, "update"])

    def candidates(self, pattern: str) -> dict[str, str]:
        """Package name to version of all packages whose name matches the regular expression."""
        names = self._run(["apt-cache", *self._options, "pkgnames"]).split()
        found = {}
        for name in sorted(name for name in names if re.fullmatch(pattern, name)):
            shown = self._run(["apt-cache", *self._options, "show", "--no-all-versions", name])
            if version := re.search(r"^Version: (\S+)", shown, re.MULTILINE):
                found[name] = version.group(1)
        return found

    def closure(self, packages: Sequence[str]) -> list[str]:
        """``packages`` and all that they depend on, less what is known not to be needed to run them."""
        shown = self._run(
            ["apt-cache", *self._options, "depends", "--recurse"]
            + [f"--no-{what}" for what in ("recommends", "suggests", "conflicts", "breaks", "replaces", "enhances")]
            + list(packages)
        )
        names = {line for line in shown.splitlines() if line and not line[0].isspace() and line[0] != "<"}
        return sorted(name for name in names if name in packages or not NOT_NEEDED.match(name))

    def unpack(self, packages: Sequence[str], root: Path) -> None:
        """Download exactly ``packages`` and lay their files out under ``root``. No maintainer script is run."""
        debs = self._folder / "debs"
        self._run(["apt-get", "-q", *self._options, "download", *packages], cwd=debs)
        for deb in sorted(debs.glob("*.deb")):
            self._run(["dpkg", "-x", str(deb), str(root)])
            deb.unlink()

    def _run(self, argv: Sequence[str], *, cwd: Path | None = None) -> str:
        env = {**os.environ, "LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive"}
        try:
            done = subprocess.run(
                argv, cwd=cwd, env=env, capture_output=True, text=True, timeout=APT_TIMEOUT_S, check=False
            )
        except subprocess.TimeoutExpired as expired:
            raise MissingTool(f"{argv[0]} was not done after {APT_TIMEOUT_S:g} s") from expired
        if done.returncode != 0:
            raise MissingTool(f"{argv[0]} failed: {(done.stderr or done.stdout).strip()[-2000:]}")
        return done.stdout


def fetch(pattern: str, root: Path, *, suite: str | None = None, without: str = "") -> str:
    """Unpack the newest package whose name matches ``pattern``, with all it needs, under ``root``; its version.

    ``suite`` is a suite of the same archive other than the machine's own, such as ``sid``. What matches ``without`` is
    left out, with what only that needed still fetched.
    Raises MissingTool when there is no apt, no usable source, or no such package.
    """
    for tool in ("apt-get", "apt-cache", "dpkg"):
        if shutil.which(tool) is None:
            raise MissingTool(f"{tool} is not on PATH, so nothing can be fetched")
    sources = distribution_sources(machine_sources(), os_release().get("VERSION_CODENAME", ""))
    if not sources:
        raise MissingTool("this machine's apt sources name no archive of its own distribution")
    private = root / ".apt"
    failure: MissingTool | None = None
    for source in sources:
        wanted = source if suite is None else replace(source, suites=(suite,), components=("main",))
        shutil.rmtree(private, ignore_errors=True)
        apt = PrivateApt(private, [wanted])
        try:
            with step(f"reading the package lists ({' '.join(wanted.suites)})"):
                apt.update()
            found = apt.candidates(pattern)
            if not found:
                failure = MissingTool(f"no package {pattern} in {' '.join(wanted.suites)}")
                continue
            name = max(found)
            packages = [one for one in apt.closure([name]) if not re.fullmatch(without, one)]
            with step(f"fetching {name} {found[name]} ({len(packages)} packages)"):
                apt.unpack(packages, root)
        except MissingTool as error:
            failure = error
            continue
        shutil.rmtree(private)
        return re.sub(r"^\d+:", "", found[name])  # the epoch
    assert failure is not None
    raise failure


def relink(root: Path) -> None:
    """Make the absolute symbolic links of unpacked packages relative where their target was unpacked as well."""
    for folder, folders, files in os.walk(root):
        for link in (Path(folder) / name for name in (*folders, *files)):
            if not link.is_symlink() or not (target := os.readlink(link)).startswith("/"):
                continue
            inside = root / target.lstrip("/")
            if os.path.lexists(inside):
                link.unlink()
                link.symlink_to(os.path.relpath(inside, link.parent))


def library_folders(root: Path) -> list[Path]:
    """Where unpacked packages keep shared libraries. Releases before 2024 have some under /lib, which only the
    installed system merges with /usr/lib."""
    return [found for top in ("usr/lib", "lib") for found in (root / top).glob(f"{platform.machine()}-linux-gnu*")]


def through_loader(root: Path, program: Path) -> list[str]:
    """The argv that starts an unpacked program with the C library it was unpacked with, not the machine's older one."""
    libraries = library_folders(root)
    loaders = [loader for folder in libraries for loader in folder.glob("ld-linux*.so.*")]
    if not loaders:
        raise MissingTool(f"the C library is missing under {root}", hint="Remove that folder; it is fetched again")
    return [str(loaders[0]), "--library-path", ":".join(map(str, libraries)), str(program)]
