"""Imports go one way: values <- logic <- adapters <- composition. Checked on the source text; nothing is imported.

A module that is new here fails the test until the tables below say where it belongs. Say it there, or move the code.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[2]

LAYERS: dict[str, tuple[str, ...]] = {
    # A module may import from its own layer and from those above it in this table.
    "values": (
        *("cdc_relay", "cdc_relay.errors", "cdc_relay.masking", "cdc_relay.config", "cdc_relay.config_layers"),
        "cdc_relay.logs",
        *("cdc_relay.interpreter", "cdc_relay.program"),
        *("cdc_relay.outbox", "cdc_relay.binlog", "cdc_relay.binlog.position"),
        # From bytes to rows, without any connection.
        *("cdc_relay.binlog.packed", "cdc_relay.binlog.events", "cdc_relay.binlog.payload"),
        *("cdc_relay.binlog.table_map", "cdc_relay.binlog.tables", "cdc_relay.binlog.rows"),
        *("cdc_relay.binlog.speculation", "cdc_relay.binlog.preamble", "cdc_relay.binlog.quick"),
        *("cdc_relay.binlog.transactions", "cdc_relay.binlog.batches", "cdc_relay.binlog.xa"),
        "cdc_relay.binlog.place",
        *("consumer", "consumer.delivery"),
    ),
    "logic": (
        *("cdc_relay.watermark", "cdc_relay.parking", "cdc_relay.delivery", "cdc_relay.metrics", "cdc_relay.cautious"),
        *(
            "cdc_relay.tailer",
            "cdc_relay.quick_send",
            "cdc_relay.untouched",
            "cdc_relay.sweeper",
            "cdc_relay.fresh_rows",
            "cdc_relay.unconsumed",
            "cdc_relay.unmarked",
        ),
        *("cdc_relay.reconcile", "cdc_relay.writeback", "cdc_relay.parked_rows", "cdc_relay.sources"),
        *("consumer.worker", "consumer.plan", "consumer.held_keys", "consumer.registry", "consumer.unit_of_work"),
        "consumer.handlers",
    ),
    "adapters": (
        *("cdc_relay.binlog.connection", "cdc_relay.binlog.source", "cdc_relay.binlog.server"),
        "cdc_relay.binlog.opening",
        "cdc_relay.binlog.explain",
        *("cdc_relay.binlog.reconnect", "cdc_relay.kafka", "cdc_relay.checkpoint", "cdc_relay.lease"),
        *("cdc_relay.acknowledged", "cdc_relay.sent_rows", "cdc_relay.row_image"),
        *("cdc_relay.admin", "cdc_relay.preflight", "cdc_relay.embedded", "cdc_relay.status", "cdc_relay.tables"),
        *("consumer.source", "consumer.topics", "consumer.dead_letter", "consumer.properties"),
        *("consumer.kafka_errors", "consumer.outage", "consumer.metrics"),
    ),
    "composition": (
        *(
            "cdc_relay.session",
            "cdc_relay.progress",
            "cdc_relay.questions",
            "cdc_relay.observer",
            "cdc_relay.service",
            "cdc_relay.cli",
            "cdc_relay.demo",
            "cdc_relay.__main__",
        ),
        *("cdc_relay.commands", "cdc_relay.bench"),
        *("consumer.service", "consumer.cli", "consumer.__main__"),
    ),
}

#: Names that may be imported against the direction, and why that is no dependency on the adapter.
EXCEPTIONS: dict[tuple[str, str], set[str]] = {
    # The values and the port stand beside the stores.
    ("cdc_relay.reconcile", "cdc_relay.checkpoint"): {"Checkpoint", "CheckpointStore"},
    ("cdc_relay.reconcile", "cdc_relay.acknowledged"): {"Acknowledged"},
}

#: Libraries that values and logic of both programs reach neither directly nor through one another.
KEPT_OUT_OF_LOGIC = ("pymysqlreplication", "confluent_kafka", "tenacity")

#: All that the consumer may know of the relay.
SHARED = (
    *("cdc_relay.outbox", "cdc_relay.errors", "cdc_relay.config", "cdc_relay.config_layers", "cdc_relay.masking"),
    "cdc_relay.logs",
    *("cdc_relay.kafka.clients", "cdc_relay.kafka.rights"),
    *("cdc_relay.admin", "cdc_relay.interpreter", "cdc_relay.program", "cdc_relay.row_image"),
)

#: Who may use the throwaway servers.
USERS_OF_EMBEDDED = ("cdc_relay.embedded", "cdc_relay.commands", "cdc_relay.demo", "cdc_relay.bench")


class Import(NamedTuple):
    importer: str
    imported: str
    """A module of ours, or the dotted name of another one."""
    names: frozenset[str]
    """What is taken from it; empty for the module itself."""
    line: int

    def __str__(self) -> str:
        return f"{self.importer} (line {self.line}) imports {self.imported}"


def project() -> dict[str, str]:
    """The source of every module of both packages, by dotted name."""
    return {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path.read_text("utf-8")
        for package in ("cdc_relay", "consumer")
        for path in sorted((ROOT / package).rglob("*.py"))
    }


def imports_of(module: str, sources: Mapping[str, str]) -> Iterator[Import]:
    """What ``module`` imports anywhere in it; what only the type checker sees is left out."""
    for node in _walk(ast.parse(sources[module], module)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(module, alias.name, frozenset(), node.lineno)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                package = module.split(".") if _is_package(module, sources) else module.split(".")[:-1]
                base = ".".join([*package[: len(package) - node.level + 1], *filter(None, [base])])
            taken = {alias.name for alias in node.names}
            submodules = {name for name in taken if f"{base}.{name}" in sources}
            for name in sorted(submodules):
                yield Import(module, f"{base}.{name}", frozenset(), node.lineno)
            if taken - submodules:
                yield Import(module, base, frozenset(taken - submodules), node.lineno)


def _walk(node: ast.AST) -> Iterator[ast.AST]:
    yield node
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            for other in child.orelse:
                yield from _walk(other)
        else:
            yield from _walk(child)


def _is_package(module: str, sources: Mapping[str, str]) -> bool:
    return any(name.startswith(module + ".") for name in sources)


def _within(module: str, prefixes: tuple[str, ...]) -> bool:
    return any(module == prefix or module.startswith(prefix + ".") for prefix in prefixes)


def layer_of(module: str) -> str | None:
    """The layer of the longest name in the table that the module is or is in; the packages themselves hold nothing."""
    named = {name: layer for layer, names in LAYERS.items() for name in names}
    at = module
    while at not in named or (at in ("cdc_relay", "consumer", "cdc_relay.binlog") and at != module):
        at = at.rpartition(".")[0]
        if not at:
            return None
    return named[at]


def violations(sources: Mapping[str, str]) -> list[str]:
    """Each import that goes the wrong way, in words."""
    found = [
        f"{module} is in no layer: name it in LAYERS of {Path(__file__).name}"
        for module in sources
        if layer_of(module) is None
    ]
    order = list(LAYERS)
    everything = [each for module in sources for each in imports_of(module, sources)]
    for each in everything:
        ours, theirs = layer_of(each.importer), layer_of(each.imported)
        if each.imported not in sources or ours is None or theirs is None:
            continue
        excepted = EXCEPTIONS.get((each.importer, each.imported), set())
        if order.index(theirs) > order.index(ours) and not (each.names and each.names <= excepted):
            found.append(f"{each}: {ours} must not know {theirs}")
        if each.importer.startswith("cdc_relay") and _within(each.imported, ("consumer",)):
            found.append(f"{each}: the relay must not know the consumer")
        if _within(each.importer, ("consumer",)) and _within(each.imported, ("cdc_relay",)):
            version_only = each.imported == "cdc_relay" and each.names == {"__version__"}
            if not _within(each.imported, SHARED) and not version_only:
                found.append(f"{each}: the consumer may know only {', '.join(SHARED)}")
        if _within(each.imported, ("cdc_relay.embedded",)) and not _within(each.importer, USERS_OF_EMBEDDED):
            found.append(f"{each}: throwaway servers are for {', '.join(USERS_OF_EMBEDDED)} only")
    found += _reached_libraries(sources, everything)
    return found


def _reached_libraries(sources: Mapping[str, str], everything: list[Import]) -> Iterator[str]:
    by_module: dict[str, list[Import]] = {module: [] for module in sources}
    for each in everything:
        if not (each.names and each.names <= EXCEPTIONS.get((each.importer, each.imported), set())):
            by_module[each.importer].append(each)
    for module in sources:
        if layer_of(module) not in ("values", "logic"):
            continue
        ways: dict[str, tuple[str, ...]] = {module: (module,)}
        queue = [module]
        for at in queue:
            for each in by_module[at]:
                if _within(each.imported, KEPT_OUT_OF_LOGIC):
                    yield f"{' -> '.join(ways[at])} imports {each.imported} (line {each.line}): logic must not reach it"
                elif each.imported in sources and each.imported not in ways:
                    ways[each.imported] = (*ways[at], each.imported)
                    queue.append(each.imported)


def cycles(sources: Mapping[str, str]) -> list[str]:
    """Modules that import one another in a ring."""
    edges = {
        module: sorted({each.imported for each in imports_of(module, sources) if each.imported in sources} - {module})
        for module in sources
    }
    found: list[str] = []
    done: set[str] = set()

    def visit(module: str, way: tuple[str, ...]) -> None:
        if module in way:
            found.append(" -> ".join((*way[way.index(module) :], module)))
        elif module not in done:
            for imported in edges[module]:
                visit(imported, (*way, module))
            done.add(module)

    for module in edges:
        visit(module, ())
    return found


def test_imports_go_one_way() -> None:
    assert violations(project()) == []


def test_no_modules_import_one_another_in_a_ring() -> None:
    assert cycles(project()) == []


def test_both_packages_are_looked_at() -> None:
    assert {"cdc_relay", "cdc_relay.errors", "cdc_relay.outbox.statements"} <= set(project())
    assert len(project()) > 20


@pytest.mark.parametrize(
    ("module", "source", "says"),
    [
        ("cdc_relay.errors", "import cdc_relay.tailer", "values must not know logic"),
        ("cdc_relay.tailer", "from cdc_relay.kafka.publisher import KafkaPublisher", "logic must not know adapters"),
        ("cdc_relay.tailer", "from cdc_relay.kafka import publisher", "logic must not know adapters"),
        ("cdc_relay.tailer", "def f():\n    import cdc_relay.service", "logic must not know composition"),
        ("cdc_relay.kafka.publisher", "from cdc_relay import service", "adapters must not know composition"),
        ("cdc_relay.kafka.publisher", "from .. import service", "adapters must not know composition"),
        ("cdc_relay.reconcile", "from cdc_relay.checkpoint import FileCheckpointStore", "logic must not know adapters"),
        ("cdc_relay.reconcile", "import cdc_relay.checkpoint", "logic must not know adapters"),
        ("cdc_relay.sweeper", "from confluent_kafka import Producer", "logic must not reach it"),
        ("cdc_relay.outbox.row", "import pymysqlreplication.packet", "sweeper -> cdc_relay.outbox.row imports"),
        ("consumer.worker", "try:\n    import tenacity\nexcept ImportError: pass", "logic must not reach it"),
        ("consumer.handlers.chat", "import confluent_kafka", "logic must not reach it"),
        ("cdc_relay.service", "import consumer.service", "the relay must not know the consumer"),
        ("consumer.service", "from cdc_relay.watermark import AckWatermark", "the consumer may know only"),
        ("consumer.service", "from cdc_relay import watermark", "the consumer may know only"),
        ("cdc_relay.service", "import cdc_relay.embedded.mysql", "throwaway servers are for"),
        ("cdc_relay.brand_new", "", "cdc_relay.brand_new is in no layer"),
        ("cdc_relay.binlog.brand_new", "", "cdc_relay.binlog.brand_new is in no layer"),
    ],
)
def test_a_wrong_import_is_found_and_named(module: str, source: str, says: str) -> None:
    sources = _small() | {module: source}
    found = violations(sources)
    assert any(says in line and module in line for line in found), found


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("cdc_relay.tailer", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import cdc_relay.service"),
        ("cdc_relay.reconcile", "from cdc_relay.checkpoint import Checkpoint, CheckpointStore"),
        ("cdc_relay.tailer", "from cdc_relay.outbox import row\nimport sqlalchemy"),
        ("cdc_relay.kafka.publisher", "import confluent_kafka\nimport cdc_relay.tailer"),
        ("consumer.service", "from cdc_relay import __version__\nfrom cdc_relay.outbox.row import OutboxRow"),
        ("cdc_relay.demo", "import cdc_relay.embedded.mysql"),
    ],
)
def test_a_right_import_is_left_alone(module: str, source: str) -> None:
    assert violations(_small() | {module: source}) == []


def test_a_ring_is_found() -> None:
    ring = {"cdc_relay.errors": "import cdc_relay.logs", "cdc_relay.logs": "from cdc_relay import errors"}
    assert cycles(_small() | ring) == ["cdc_relay.errors -> cdc_relay.logs -> cdc_relay.errors"]


def _small() -> dict[str, str]:
    modules = (
        *("cdc_relay", "cdc_relay.errors", "cdc_relay.logs", "cdc_relay.outbox", "cdc_relay.outbox.row"),
        *("cdc_relay.watermark", "cdc_relay.tailer", "cdc_relay.reconcile", "cdc_relay.checkpoint"),
        *("cdc_relay.kafka", "cdc_relay.kafka.publisher", "cdc_relay.embedded", "cdc_relay.embedded.mysql"),
        *("cdc_relay.service", "consumer", "consumer.worker", "consumer.service"),
    )
    return dict.fromkeys(modules, "") | {"cdc_relay.sweeper": "from cdc_relay.outbox.row import OutboxRow"}
