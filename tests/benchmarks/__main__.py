"""``python -m tests.benchmarks``: figures on real servers; a few minutes by default, the documented set with --full.

Scenarios: catchup, latency, profile, foreign, restart, soak, backlog, duplicates, comparison, rivals, consumer, wire.
``plot FILE`` draws what ``--out`` has written. Nothing here fails for being slow: machines differ, and so do their
neighbours.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from cdc_relay.bench.figures import Figure
from cdc_relay.bench.machine import machine_facts, server_facts
from cdc_relay.embedded.kafka_files import KAFKA_VERSION
from cdc_relay.masking import mask_text
from cdc_relay.outbox.database import closing_engine, make_engine, transaction
from tests.benchmarks import (
    backlog,
    catchup,
    comparison,
    consumer,
    duplicates,
    foreign,
    latency,
    profile,
    restart,
    results,
    rivals,
    rivals_latency,
    soak,
    wire,
)
from tests.benchmarks.lab import FULL, Lab, Sizes, say
from tests.benchmarks.servers import servers
from tests.benchmarks.warm_up import WARM_UP_S, warm_up

SCENARIOS: dict[str, Callable[[Lab], Iterator[Figure]]] = {
    module.__name__.rpartition(".")[2]: module.measure
    for module in (
        *(catchup, latency, profile, foreign, restart, backlog, duplicates, comparison, rivals, rivals_latency),
        *(consumer, wire, soak),
    )
}


def main() -> None:
    """Measure what was asked for, print it, and save it if wished."""
    if sys.argv[1:2] == ["plot"]:
        _plot(sys.argv[2:])
        return
    parser = command_line()
    arguments = parser.parse_args()
    if unknown := set(arguments.what) - SCENARIOS.keys():
        parser.error(f"there is no scenario {', '.join(sorted(unknown))}; there are {', '.join(SCENARIOS)}")
    facts = machine_facts() | {"command": mask_text(" ".join(["python -m tests.benchmarks", *sys.argv[1:]]))}
    with servers(arguments.mysql, arguments.kafka) as settings:
        engine = make_engine(settings.database, pool_size=1)
        with closing_engine(engine), transaction(engine) as connection:
            facts |= server_facts(connection)
        facts |= {"kafka": f"at {arguments.kafka}" if arguments.kafka else f"{KAFKA_VERSION}, warm"}
        for name, value in facts.items():
            print(f"{name:32}{value}", flush=True)
        lab = Lab(
            settings,
            sizes(arguments),
            arguments.against,
            tuple(arguments.against_modes),
            throwaway=arguments.mysql is None,
            debezium=arguments.debezium and arguments.debezium.resolve(),
            maxwell=arguments.maxwell and arguments.maxwell.resolve(),
            java=arguments.java,
        )
        if arguments.kafka is None:
            say(f"warming the broker up for {WARM_UP_S:g} s")
            warm_up(settings.kafka)
        found: list[Figure] = []
        for name in arguments.what or SCENARIOS:
            print(f"\n{name}", flush=True)
            for figure in SCENARIOS[name](lab):
                found.append(figure)
                print(f"  {figure.case:34} {figure.variant:30} {figure.metric:30} {figure.spread} {figure.unit}")
                sys.stdout.flush()
            if arguments.out:
                results.save(arguments.out, facts, found)


def command_line() -> argparse.ArgumentParser:
    """The options."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("what", nargs="*", help=f"which scenarios; all unless given: {', '.join(SCENARIOS)}")
    add("--full", action="store_true", help="the sizes of docs/performance.md, more than an hour")
    add("--out", type=Path, metavar="FILE.json", help="save the figures there, and as .csv beside it")
    add("--repeat", type=int, help="runs of each")
    add("--rows", type=int, help="rows of catchup, profile and duplicates")
    add("--rows-each", type=int, nargs="+", help="rows of a transaction")
    add("--rates", type=int, nargs="+", help="rows/s of latency")
    add("--seconds", type=float, help="of each rate")
    add("--modes", nargs="+", choices=["none", "lazy", "status"], help="of writeback.mode")
    add("--readers", nargs="+", choices=["auto", "wire", "library"], help="of tail.reader")
    add("--tls", nargs="+", choices=["off", "on"], help="whether MySQL is read by TLS")
    add("--foreign-mb", type=int, help="MB of binlog in foreign, 2 %% of it the outbox's")
    add("--backlog", type=int, nargs="+", help="rows waiting in backlog")
    add("--minutes", type=float, help="of soak")
    add("--peer-rows", type=int, help="rows for the slow ones in comparison")
    add("--consumed", type=int, help="rows of consumer")
    add("--consumers", type=int, nargs="+", help="consumer programs in the group")
    add("--workers", type=int, nargs="+", help="of consumer.workers")
    add("--against", type=Path, help="another checkout, measured in turn with this one in catchup, latency, consumer")
    add("--against-modes", nargs="*", default=["status"], help="of the other checkout; '' where it has none")
    add("--debezium", type=Path, metavar="DIR", help="an unpacked Debezium Server, for rivals")
    add("--maxwell", type=Path, metavar="DIR", help="an unpacked Maxwell, for rivals")
    add("--java", default="java", help="what runs these two; Debezium Server 3.6 needs 21 or later")
    add("--mysql", help="URL of a MySQL to use; its user must have every privilege")
    add("--kafka", help="host:port of a Kafka to use")
    return parser


def sizes(arguments: argparse.Namespace) -> Sizes:
    """Those of --full or of the short form, with what was given in their place."""
    given: dict[str, Any] = {}
    for each in fields(Sizes):
        value = getattr(arguments, each.name)
        if value is not None:
            given[each.name] = tuple(value) if isinstance(value, list) else value
    return replace(FULL if arguments.full else Sizes(), **given)


def _plot(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks plot", description="Draw saved figures, one SVG a scenario."
    )
    parser.add_argument("results", type=Path, help="what --out has written")
    parser.add_argument("--into", type=Path, help="the folder; that of the results unless given")
    arguments = parser.parse_args(argv)
    if not arguments.results.exists():
        parser.error(f"{arguments.results} does not exist; --out FILE.json writes such a file")
    for path in results.plot(arguments.results, arguments.into or arguments.results.parent):
        print(path)


if __name__ == "__main__":
    main()
