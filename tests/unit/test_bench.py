"""Figures, settings of what is measured, and what ``cdc-relay bench`` refuses. No services."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass

import pytest
from typer.testing import CliRunner

from cdc_relay.bench.figures import Figure, gather, metric, nearest_rank, scenarios, spread
from cdc_relay.bench.latency import WARM_UP_S, summary
from cdc_relay.bench.place import ThrowawayOutbox
from cdc_relay.bench.relay import MeasurementFailed
from cdc_relay.bench.run import Bench, Choices
from cdc_relay.bench.settings import altered, as_environment
from cdc_relay.commands import app
from cdc_relay.config import Settings
from cdc_relay.config_layers import load

ADDRESSES = {"database.url": "mysql://relay:p%40ss@db:3307/shop?ssl_ca=/ca.pem", "kafka.bootstrap_servers": "k:9092"}


@pytest.mark.parametrize(
    ("count", "share", "rank"),
    [(1, 0.5, 1), (2, 0.5, 1), (3, 0.5, 2), (100, 0.99, 99), (101, 0.99, 100), (7, 1.0, 7), (7, 0.0, 1)],
)
def test_a_percentile_is_a_value_that_was_measured(count: int, share: float, rank: int) -> None:
    assert nearest_rank(range(1, count + 1), share) == rank


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ((0.0, 0.0, 0.0), "0"),
        ((7.0, 5.0, 120.0), "7 (5 … 120)"),
        ((17_894.3, 12_311.0, 18_201.0), "17,900 (12,300 … 18,200)"),
        ((19.34, 8.1, 120.44), "19.3 (8.1 … 120.4)"),
        ((24.0, 24.0, 25.5), "24.0 (24.0 … 25.5)"),
        ((0.8421, 0.8421, 0.8421), "0.842"),
        ((0.0, -0.25, 3.0), "0.00 (-0.25 … 3.00)"),
        ((999.6, 300.0, 300_000.0), "1,000 (300 … 300,000)"),
    ],
)
def test_three_digits_of_the_median_are_shown(values: tuple[float, float, float], words: str) -> None:
    assert spread(*values) == words


def test_a_figure_tells_its_spread_and_survives_json() -> None:
    figure = Figure("catch-up", "1 row", "status", "throughput", "rows/s", (18_000.0, 12_300.0, 18_230.0))
    assert (figure.median, figure.lowest, figure.highest) == (18_000, 12_300, 18_230)
    assert figure.spread == "18,000 (12,300 … 18,200)"
    assert Figure("s", "c", "v", "m", "u", (18_000.0,)).spread == "18,000"
    assert Figure.from_plain(figure.plain()) == figure
    assert scenarios([figure, figure]) == ["catch-up"]


@dataclass(frozen=True)
class Run:
    speed: float = metric("speed", "rows/s")
    marked: float | None = metric("marked", "rows/s")
    note: str = ""


def test_runs_become_figures_of_what_every_run_has_shown() -> None:
    found = gather("s", "c", "v", [Run(1.0, 2.0), Run(3.0, None)])
    assert found == [Figure("s", "c", "v", "speed", "rows/s", (1.0, 3.0))]
    assert [each.metric for each in gather("s", "c", "v", [Run(1.0, 2.0)])] == ["speed", "marked"]


def test_another_process_gets_the_same_settings() -> None:
    given = load(
        ADDRESSES
        | {"kafka.properties": {"sasl.password": "s\"e'c", "linger.ms": 3}, "tail.server_id": 7, "log.level": "debug"},
        environ={},
    )
    wanted = altered(given, {"name": "bench", "writeback.mode": "none", "tail.server_id": None})
    assert (wanted.name, wanted.writeback.mode, wanted.tail.server_id) == ("bench", "none", None)
    assert wanted.kafka == given.kafka
    assert load(environ=as_environment(wanted)) == wanted


def test_what_was_never_set_is_left_to_the_other_version() -> None:
    assert set(as_environment(load(ADDRESSES, environ={}))) == {"CDC_DATABASE", "CDC_KAFKA"}


def test_the_measured_table_is_no_table_of_the_application() -> None:
    given = load(ADDRESSES | {"database.table": "theirs", "database.timezone": "Asia/Tokyo"}, environ={})
    outbox = ThrowawayOutbox(given)
    database = outbox.settings.database
    assert database.parsed == given.database.parsed.set(database=outbox.name)
    assert outbox.name.startswith("cdc_relay_bench_")
    assert (database.table, database.timezone) == ("agent_outbox_messages", "UTC")


def test_latency_begins_after_the_warm_up_and_counts_what_came_before_the_answer() -> None:
    committed = {1: 100.0, 2: 100.0 + WARM_UP_S, 3: 103.0, 4: 104.0}
    arrived = {1: 109.0, 2: 100.0 + WARM_UP_S + 0.002, 3: 102.999, 4: 104.004}
    found = summary(committed, arrived)
    assert [round(value, 6) for value in (found.p50_ms, found.p99_ms, found.highest_ms)] == [2.0, 4.0, 4.0]
    assert found.reached_per_s == 0.75


def test_rows_that_are_all_of_the_warm_up_are_no_measurement() -> None:
    with pytest.raises(MeasurementFailed, match="2 rows were committed, none of them behind"):
        summary({1: 100.0, 2: 100.1}, {1: 100.0, 2: 100.1})


def settings() -> Settings:
    return load(ADDRESSES, environ={})


def test_it_asks_first_and_takes_no_for_an_answer() -> None:
    terminal, stdin = os.openpty()
    try:
        with subprocess.Popen(
            [sys.executable, "-m", "cdc_relay", "bench"],
            env={**os.environ, "CDC_DATABASE__URL": "mysql://h/d", "CDC_KAFKA__BOOTSTRAP_SERVERS": "127.0.0.1:1"},
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as program:
            os.write(terminal, b"n\n")
            out, err = program.communicate(timeout=60)
    finally:
        os.close(terminal)
        os.close(stdin)
    assert program.returncode == 1, err
    assert "Go ahead? [y/N]" in err
    assert "makes the database cdc_relay_bench_" in err
    assert out.strip() == ""  # readline may write a blank


def test_the_plan_names_what_is_made_and_no_password() -> None:
    bench = Bench(settings(), Choices(1_000, 1, (100,), 3.0, 2, 600, 4, 6))
    plan = bench.plan
    assert "db:3307, as relay" in plan
    assert f"database {bench.outbox.name}" in plan
    assert f"topic {bench.topic.name} with 6 partitions" in plan
    assert "commits 4,000 rows" in plan  # 2 × 1,000, and 2 modes × 2 × 5 s × 100
    assert "writes 6,000 records" in plan
    assert "p@ss" not in plan
    assert "p%40ss" not in plan


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        ([], "must be given where nobody can be asked"),
        (["--rows", "0", "--rate", "0"], "nothing is left to measure"),
        (["--seconds", "0"], "--seconds"),
    ],
)
def test_what_cannot_be_meant_is_refused(argv: list[str], says: str) -> None:
    environment = {"CDC_DATABASE__URL": ADDRESSES["database.url"], "CDC_KAFKA__BOOTSTRAP_SERVERS": "k:9092"}
    result = CliRunner().invoke(app, ["bench", *argv], env=environment)
    assert result.exit_code == 2
    assert says in result.output
