"""Reading the machine's apt sources, in both of apt's formats."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from cdc_relay.embedded import apt
from cdc_relay.embedded.apt import AptSource

DEB822 = """\
Types: deb deb-src
# a comment in the middle
URIs: http://archive.example/debian
Suites: bookworm bookworm-updates
Components: main contrib
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

Enabled: no
Types: deb
URIs: http://off.example/debian
Suites: bookworm
Components: main

Types: deb-src
URIs: http://source.example/debian
Suites: bookworm
Components: main

types: deb
uris: https://packages.example/apt
suites: stable
components: tool
signed-by:
 -----BEGIN PGP PUBLIC KEY BLOCK-----
 .
 mQENBF
 -----END PGP PUBLIC KEY BLOCK-----
"""

ONE_LINE = """\
# deb http://commented.example/debian bookworm main
deb http://archive.example/debian bookworm main contrib # with a remark
deb-src http://archive.example/debian bookworm main
deb [arch=amd64,arm64 signed-by=/etc/apt/keyrings/tool.gpg lang=none] https://packages.example/apt stable tool

  deb   [ trusted=yes ]  file:/srv/archive   ./
"""


def test_deb822_paragraphs_become_sources() -> None:
    first, second = apt.parse_deb822(DEB822)
    assert first == AptSource(
        ("http://archive.example/debian",),
        ("bookworm", "bookworm-updates"),
        ("main", "contrib"),
        (("Signed-By", "/usr/share/keyrings/debian-archive-keyring.gpg"),),
    )
    assert second.uris == ("https://packages.example/apt",)
    assert "\n mQENBF\n" in dict(second.options)["Signed-By"]


def test_one_line_entries_become_sources() -> None:
    assert apt.parse_one_line(ONE_LINE) == [
        AptSource(("http://archive.example/debian",), ("bookworm",), ("main", "contrib")),
        AptSource(
            ("https://packages.example/apt",),
            ("stable",),
            ("tool",),
            (("Architectures", "amd64 arm64"), ("Signed-By", "/etc/apt/keyrings/tool.gpg")),
        ),
        AptSource(("file:/srv/archive",), ("./",), (), (("Trusted", "yes"),)),
    ]


@pytest.mark.parametrize("source", [*apt.parse_deb822(DEB822), *apt.parse_one_line(ONE_LINE)[:2]])
def test_what_is_written_for_apt_reads_back_the_same(source: AptSource) -> None:
    (back,) = apt.parse_deb822(source.deb822())
    assert back.uris == source.uris
    assert back.suites == source.suites
    assert back.components == source.components
    assert sorted(back.options) == sorted(source.options)


def test_sources_of_all_files_are_found_in_apts_order(tmp_path: Path) -> None:
    (tmp_path / "sources.list.d").mkdir()
    (tmp_path / "sources.list").write_text("deb http://one.example/debian bookworm main\n")
    (tmp_path / "sources.list.d/b.sources").write_text(DEB822)
    (tmp_path / "sources.list.d/a.list").write_text("deb http://two.example/debian bookworm main\n")
    (tmp_path / "sources.list.d/c.list.disabled").write_text("deb http://no.example/debian bookworm main\n")
    uris = [source.uris[0] for source in apt.machine_sources(tmp_path)]
    assert uris == [
        "http://one.example/debian",
        "http://two.example/debian",
        "http://archive.example/debian",
        "https://packages.example/apt",
    ]


def test_a_machine_without_apt_has_no_sources(tmp_path: Path) -> None:
    assert apt.machine_sources(tmp_path) == []


def test_the_distributions_own_archive_comes_before_others_for_the_same_release() -> None:
    foreign = AptSource(("https://mariadb.example/debian",), ("bookworm",), ("main",))
    tool = AptSource(("https://tool.example",), ("bookworm",), ("stable",))
    security = AptSource(("http://archive.example/debian-security",), ("bookworm-security",), ("main",))
    own = AptSource(
        ("http://archive.example/debian",), ("bookworm", "bookworm-updates"), ("main",), (("Signed-By", "/k.gpg"),)
    )
    assert apt.distribution_sources([foreign, tool, security, own], "bookworm") == [own, foreign]
    assert apt.distribution_sources([replace(own, suites=("stable", "stable-updates"))], "bookworm") != []


def test_os_release_is_read_with_or_without_quotes(tmp_path: Path) -> None:
    path = tmp_path / "os-release"
    path.write_text('ID=debian\nVERSION_CODENAME="bookworm"\n\nEMPTY=\n')
    assert apt.os_release(path) == {"ID": "debian", "VERSION_CODENAME": "bookworm"}
    assert apt.os_release(tmp_path / "none") == {}


def test_absolute_links_of_unpacked_packages_lead_to_what_was_unpacked(tmp_path: Path) -> None:
    (tmp_path / "etc/java").mkdir(parents=True)
    (tmp_path / "etc/java/security").write_text("ours")
    (tmp_path / "usr/lib").mkdir(parents=True)
    (tmp_path / "usr/lib/security").symlink_to("/etc/java/security")
    (tmp_path / "usr/lib/folder").symlink_to("/etc/java")
    (tmp_path / "usr/lib/elsewhere").symlink_to("/etc/of-the-machine")
    apt.relink(tmp_path)
    moved = tmp_path.rename(tmp_path.with_name("moved"))
    assert (moved / "usr/lib/security").read_text() == "ours"
    assert (moved / "usr/lib/folder/security").read_text() == "ours"
    assert str((moved / "usr/lib/elsewhere").readlink()) == "/etc/of-the-machine"


@pytest.mark.parametrize("name", ["perl", "perl-base", "libperl5.42", "gcc-16-base", "libdb5.3t64", "libgdbm6t64"])
def test_what_a_server_does_not_need_to_run_is_known(name: str) -> None:
    assert apt.NOT_NEEDED.match(name)


@pytest.mark.parametrize("name", ["libc6", "libssl3t64", "libprotobuf-lite32t64", "mysql-server-core", "libicu78"])
def test_what_it_needs_is_kept(name: str) -> None:
    assert not apt.NOT_NEEDED.match(name)
