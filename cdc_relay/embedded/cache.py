"""Where fetched servers are kept: filled once, whole or not at all, shared by every run of this user."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from cdc_relay.embedded.progress import step
from cdc_relay.errors import MissingTool

#: Seconds to wait for another run that fills the same folder; each of its own steps is bounded to less.
FILL_TIMEOUT_S = 1800.0


def cache_root() -> Path:
    """``$XDG_CACHE_HOME/cdc-relay``, else ``~/.cache/cdc-relay``; made when missing."""
    return _xdg("XDG_CACHE_HOME", ".cache")


def state_root() -> Path:
    """``$XDG_STATE_HOME/cdc-relay``, else ``~/.local/state/cdc-relay``; made when missing."""
    return _xdg("XDG_STATE_HOME", ".local/state")


def _xdg(variable: str, default: str) -> Path:
    base = os.environ.get(variable)
    # The specification of the base folders says that a relative path is to be ignored.
    root = (Path(base) if base and Path(base).is_absolute() else Path.home() / default) / "cdc-relay"
    root.mkdir(parents=True, exist_ok=True)
    return root


def cached(name: str, version: str | None = None) -> Path | None:
    """The filled folder of that version, or of any version the one filled last; None when there is none."""
    if version is not None:
        path = cache_root() / f"{name}-{version}"
        return path if path.is_dir() else None
    found = [path for path in cache_root().glob(f"{name}-[0-9]*") if path.is_dir()]
    return max(found, key=lambda path: path.stat().st_mtime, default=None)


def fill(name: str, build: Callable[[Path], str], *, version: str | None = None) -> Path:
    """The folder ``name-version``, built by ``build(folder)`` when there is none yet.

    Without ``version`` any one that is there will do; ``build`` returns the version that it got. It fills a folder
    beside the final one, and a rename makes that visible, so nobody ever sees half of one, and a run that was killed
    leaves only a folder that the next one removes. A lock that the kernel holds for as long as its holder lives makes
    a second run wait for the first instead of fetching the same again.
    """
    version = version and re.sub(r"[^0-9A-Za-z.+~-]", "_", version)
    if (found := cached(name, version)) is not None:
        return found
    root = cache_root()
    with _only_one(root / f".{name}.lock", name):
        if (found := cached(name, version)) is not None:
            return found
        for left_over in root.glob(f".{name}.part-*"):
            shutil.rmtree(left_over, ignore_errors=True)
        part = Path(tempfile.mkdtemp(prefix=f".{name}.part-", dir=root))
        try:
            built = build(part)
            part.chmod(0o755)  # mkdtemp's 0700 would keep a server out that runs as another user
            return part.rename(root / f"{name}-{version or built}")
        finally:
            shutil.rmtree(part, ignore_errors=True)


@contextmanager
def _only_one(path: Path, name: str) -> Iterator[None]:
    with path.open("w") as lock:
        if not _locked(lock):
            with step(f"waiting for another run that is making {name}"):
                deadline = time.monotonic() + FILL_TIMEOUT_S
                while not _locked(lock):
                    if time.monotonic() > deadline:
                        raise MissingTool(f"another run has been making {name} for {FILL_TIMEOUT_S:g} s")
                    time.sleep(0.1)
        yield


def _locked(lock: TextIO) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
