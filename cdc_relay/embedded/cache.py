"""Where fetched servers are kept: filled once, whole or not at all, shared by every run of this user."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from cdc_relay.embedded.progress import step


def cache_root() -> Path:
    """``$XDG_CACHE_HOME/cdc-relay``, else ``~/.cache/cdc-relay``; made when missing."""
    base = os.environ.get("XDG_CACHE_HOME")
    # The specification of the base folders says that a relative path is to be ignored.
    root = (Path(base) if base and Path(base).is_absolute() else Path.home() / ".cache") / "cdc-relay"
    root.mkdir(parents=True, exist_ok=True)
    return root


def cached(name: str) -> Path | None:
    """The newest filled folder of ``name``, or None. Its version follows the name: ``mysql-9.7.4-2``."""
    found = [path for path in cache_root().glob(f"{name}-[0-9]*") if path.is_dir()]
    return max(found, key=lambda path: path.stat().st_mtime, default=None)


def fill(name: str, build: Callable[[Path], str]) -> Path:
    """The folder of ``name``, built by ``build(folder)`` when there is none yet.

    ``build`` fills a folder beside the final one and returns the version; a rename then makes it visible, so nobody
    ever sees half of one, and a run that was killed leaves only a folder that the next one removes. A lock held
    by the kernel for as long as its holder lives makes a second run wait for the first instead of fetching it again.
    """
    if (found := cached(name)) is not None:
        return found
    root = cache_root()
    with _only_one(root / f".{name}.lock", name):
        if (found := cached(name)) is not None:
            return found
        for left_over in root.glob(f".{name}.part-*"):
            shutil.rmtree(left_over, ignore_errors=True)
        part = Path(tempfile.mkdtemp(prefix=f".{name}.part-", dir=root))
        try:
            version = build(part)
            part.chmod(0o755)
            return part.rename(root / f"{name}-{version}")
        finally:
            shutil.rmtree(part, ignore_errors=True)


@contextmanager
def _only_one(path: Path, name: str) -> Iterator[None]:
    with path.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            with step(f"waiting for another run that is fetching {name}"):
                fcntl.flock(lock, fcntl.LOCK_EX)
        yield
