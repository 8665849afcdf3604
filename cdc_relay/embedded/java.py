"""Java and Maven: the machine's own, else Debian's packages unpacked into the cache, without root."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import ssl
import struct
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cdc_relay.embedded import apt, cache
from cdc_relay.embedded.progress import step
from cdc_relay.errors import MissingTool

OLDEST_JAVA = 17

#: What a headless Java without fonts, printers and sound does not load, and the C library, which has to be the
#: machine's: Java finds its own files by where the program is, so it cannot be started through another loader.
NOT_LOADED = (
    r"libc6|libgcc-s1|fonts-.*|ttf-.*|xfonts-.*|x11-.*|fontconfig.*|libfontenc.*|libglib.*|libgnutls.*|libcups.*"
    r"|libavahi.*|libdbus.*|libasound.*|libpam.*|libaudit.*|libcap.*|libkrb5.*|libgssapi.*|libk5crypto.*|libslang.*"
    r"|libnewt.*|libtextwrap.*|libdebian.*|libelogind.*|libsystemd.*|libsqlite.*|libnss3|libnspr4|libgraphite.*"
    r"|libharfbuzz.*|libpng.*|libfreetype.*|libbrotli.*|install-info|readline-common|sysvinit-utils|util-linux.*|openssl"
)
#: Protects nothing: the store holds public certificates, but Java wants a password.
STORE_PASSWORD = "changeit"


@dataclass(frozen=True)
class Java:
    """A Java to run, with what must be in its environment."""

    program: Path
    version: str
    env: Mapping[str, str] = field(default_factory=dict)


def find_java() -> Java:
    """The one of ``JAVA_HOME`` or PATH when it is recent enough, else a fetched one. Raises MissingTool."""
    return _installed_java() or _fetched_java(_fetched())


def maven() -> tuple[list[str], dict[str, str]]:
    """The argv and the environment that start Maven. Raises MissingTool."""
    on_path = shutil.which("mvn")
    installed = _installed_java()
    if on_path is not None and installed is not None:
        return [on_path], dict(os.environ)
    root = _fetched()
    java = _fetched_java(root)
    env = {
        **os.environ,
        **java.env,
        "JAVA_HOME": str(java.program.parent.parent),
        "MAVEN_OPTS": f"-Djavax.net.ssl.trustStoreType=jks -Djavax.net.ssl.trustStore={root / 'cacerts.jks'} "
        f"-Djavax.net.ssl.trustStorePassword={STORE_PASSWORD} {os.environ.get('MAVEN_OPTS', '')}",
    }
    return ["/bin/sh", str(root / "usr/share/maven/bin/mvn")], env


def _installed_java() -> Java | None:
    home = os.environ.get("JAVA_HOME")
    for program in ([Path(home) / "bin/java"] if home else []) + [
        Path(found) for found in [shutil.which("java")] if found
    ]:
        version = _version(program, {})
        if version and int(version.partition(".")[0]) >= OLDEST_JAVA:
            return Java(program, version)
    return None


def _version(program: Path, env: Mapping[str, str]) -> str:
    """``openjdk version "17.0.15" 2025-04-15`` -> ``17.0.15``; empty when it does not run."""
    try:
        said = subprocess.run(
            [str(program), "-version"],
            env={**os.environ, **env},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        ).stderr
    except (OSError, subprocess.TimeoutExpired):
        return ""
    match = re.search(r'version "(\d+[\d.]*)', said)
    return match[1] if match else ""


def _fetched() -> Path:
    try:
        return cache.fill("maven", _fetch)
    except MissingTool as error:
        raise MissingTool(
            f"Kafka needs Java {OLDEST_JAVA} or later and Maven, and they could not be fetched: {error}",
            hint="Install them: apt-get install default-jre-headless maven",
        ) from error


def _fetch(root: Path) -> str:
    version = apt.fetch("maven", root, without=NOT_LOADED)
    apt.relink(root)
    with step("making Java's list of trusted authorities"):
        (root / "cacerts.jks").write_bytes(java_key_store(_trusted_authorities(root), STORE_PASSWORD))
    return version


def _trusted_authorities(root: Path) -> list[bytes]:
    """What Python trusts, as DER, for Java, which has its own list only once its package's installer has run."""
    found = ssl.create_default_context().get_ca_certs(binary_form=True)
    if found:
        return found
    # Not even ca-certificates is installed, but its package was unpacked with Java's.
    pems = sorted((root / "usr/share/ca-certificates/mozilla").glob("*.crt"))
    return [ssl.PEM_cert_to_DER_cert(pem.read_text(encoding="ascii")) for pem in pems]


def java_key_store(certificates: Sequence[bytes], password: str) -> bytes:
    """A key store of format JKS with trusted certificates, as in OpenJDK's JavaKeyStore.java.

    Written by hand, because a library that parses each certificate warns of those authorities, trusted all the same,
    whose serial number is not as it should be.
    """
    store = struct.pack(">III", 0xFEEDFEED, 2, len(certificates))
    for number, der in enumerate(certificates):
        store += struct.pack(">I", 2) + _utf(f"ca{number}") + struct.pack(">Q", 0) + _utf("X.509")
        store += struct.pack(">I", len(der)) + der
    return store + hashlib.sha1(password.encode("utf-16-be") + b"Mighty Aphrodite" + store).digest()


def _utf(text: str) -> bytes:
    return struct.pack(">H", len(text)) + text.encode("ascii")


def _fetched_java(root: Path) -> Java:
    program = next((path for path in sorted((root / "usr/lib/jvm").glob("java-*/bin/java")) if path.exists()), None)
    if program is None:
        raise MissingTool(f"there is no Java under {root}", hint="Remove that folder; it is fetched again")
    env = {"LD_LIBRARY_PATH": ":".join(map(str, apt.library_folders(root)))}
    return Java(program, _version(program, env), env)
