"""``python -m tests.benchmarks``: figures on real servers. Short by default; see ``--help``.

Nothing here fails for being slow: machines differ, and so do their neighbours.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from statistics import median

from tests.benchmarks import latency, profile
from tests.benchmarks.catchup import CatchUp, FilledOutbox
from tests.benchmarks.relay import Variant
from tests.benchmarks.servers import Servers, machine, servers


def main() -> None:
    """Measure what was asked for and print it."""
    arguments = _arguments()
    print(machine(), flush=True)
    with servers(arguments.mysql, arguments.kafka) as found:
        for what in arguments.what:
            {"catchup": _catch_up, "latency": _latency, "profile": _profile}[what](found, arguments)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("what", nargs="*", default=["catchup", "latency"], help="catchup, latency, profile")
    parser.add_argument("--rows", type=int, default=100_000, help="rows of a catch-up")
    parser.add_argument("--rows-each", type=int, nargs="*", default=[1, 100], help="rows of a transaction")
    parser.add_argument("--rates", type=int, nargs="*", default=[200, 1_000, 5_000], help="rows/s of the latencies")
    parser.add_argument("--seconds", type=float, default=10.0, help="of each rate")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--modes", nargs="*", default=["none", "status"], help="of writeback.mode")
    parser.add_argument("--readers", nargs="*", default=["auto"], help="of tail.reader")
    parser.add_argument("--tls", action="store_true", help="read MySQL by TLS")
    parser.add_argument("--against", type=Path, help="another checkout, measured in turn with this one")
    parser.add_argument("--against-modes", nargs="*", default=["status"], help="of the other checkout; '' for its own")
    parser.add_argument("--mysql", help="URL of a MySQL to use; its user must be able to create databases")
    parser.add_argument("--kafka", help="host:port of a Kafka to use")
    return parser.parse_args()


def _variants(arguments: argparse.Namespace) -> list[Variant]:
    found = [
        Variant(f"{mode}, {reader}", {"CDC_WRITEBACK__MODE": mode, "CDC_TAIL__READER": reader}, None)
        for mode in arguments.modes
        for reader in arguments.readers
    ]
    if arguments.against:
        found += [
            Variant(
                f"{mode or 'status'}, other checkout", {"CDC_WRITEBACK__MODE": mode} if mode else {}, arguments.against
            )
            for mode in arguments.against_modes
        ]
    return found


def _catch_up(found: Servers, arguments: argparse.Namespace) -> None:
    for rows_each in arguments.rows_each:
        print(f"\ncatch-up, {arguments.rows:,} rows, {rows_each} a transaction; median (lowest … highest)", flush=True)
        filled = FilledOutbox(found, rows=arguments.rows, rows_each=rows_each, tls=arguments.tls)
        variants = _variants(arguments)
        results: dict[str, list[CatchUp]] = {variant.name: [] for variant in variants}
        for _ in range(arguments.repeat):  # in turn, so that a busy minute hits all alike
            for variant in variants:
                marks = variant.settings.get("CDC_WRITEBACK__MODE") != "none"
                results[variant.name].append(filled.run(variant, marks=marks))
        for name, runs in results.items():
            print(
                f"  {name:24} {_spread([run.rows_per_s / 1000 for run in runs], 'k rows/s')}"
                f"  {_spread([run.cpu_us for run in runs], 'µs CPU/row')}"
                f"  first {_spread([run.first_s for run in runs], 's', 2)}"
                f"  {_spread([run.peak_mib for run in runs], 'MiB', 0)}"
                f"  all marked {_spread([run.settled_s for run in runs], 's', 1)}",
                flush=True,
            )
        filled.drop()


def _spread(values: list[float], unit: str, digits: int = 1) -> str:
    return f"{median(values):.{digits}f} ({min(values):.{digits}f} … {max(values):.{digits}f}) {unit}"


def _latency(found: Servers, arguments: argparse.Namespace) -> None:
    for rate in arguments.rates:
        print(f"\ncommit known to the application → record at a consumer, {rate:,} rows/s; medians of runs", flush=True)
        for variant in _variants(arguments):
            runs = [
                latency.measure(found, variant, rows_per_second=rate, seconds=arguments.seconds)
                for _ in range(arguments.repeat)
            ]
            print(
                f"  {variant.name:24} p50 {_spread([run.p50 for run in runs], 'ms', 2)}"
                f"  p99 {_spread([run.p99 for run in runs], 'ms', 2)}"
                f"  highest {_spread([run.highest for run in runs], 'ms')}",
                flush=True,
            )


def _profile(found: Servers, arguments: argparse.Namespace) -> None:
    for rows_each in arguments.rows_each:
        print(f"\nCPU for a row by step, {arguments.rows:,} rows, {rows_each} a transaction", flush=True)
        for step, microseconds in profile.by_step(found, rows=arguments.rows, rows_each=rows_each):
            print(f"  {step:28} {microseconds:6.2f} µs", flush=True)


if __name__ == "__main__":
    main()
