"""What the benchmarks make of their figures: sizes, files, drawings. Nothing is measured."""

from __future__ import annotations

import csv
from pathlib import Path
from xml.etree import ElementTree

import pytest

from cdc_relay.bench.figures import Figure
from tests.benchmarks import results
from tests.benchmarks.__main__ import SCENARIOS, command_line, sizes
from tests.benchmarks.lab import FULL, Sizes
from tests.benchmarks.soak import first_and_last
from tests.benchmarks.svg import Bar, Panel, chart

SVG = "{http://www.w3.org/2000/svg}"
FACTS = {"machine": "2 × some processor", "taken at": "2026-01-01 00:00 UTC"}
FIGURES = [
    Figure("catch-up", "1 row", "none", "throughput", "rows/s", (40_000.0, 36_000.0, 44_000.0)),
    Figure("catch-up", "1 row", "status", "throughput", "rows/s", (20_000.0,)),
    Figure("catch-up", "1 row", "status", "processor time", "µs/row", (21.5,)),
    Figure("latency", "200 rows/s", "status", "p99", "ms", (-0.1, 5.0)),
]


def bars(drawn: str) -> list[float]:
    """Lengths, from the top."""
    return [float(rect.attrib["width"]) for rect in ElementTree.fromstring(drawn).iter(f"{SVG}rect")][1:]


def texts(drawn: str) -> list[str]:
    return [text.text or "" for text in ElementTree.fromstring(drawn).iter(f"{SVG}text")]


def test_bars_are_as_long_as_their_medians() -> None:
    [long, short] = bars(chart("t", [Panel("p", [Bar("c", "a", 40, 36, 50), Bar("c", "b", 20, 20, 20)])], "f"))
    assert long == pytest.approx(2 * short)


def test_each_panel_has_a_scale_of_its_own() -> None:
    one, other = Panel("p", [Bar("c", "a", 40, 40, 40)]), Panel("q", [Bar("c", "a", 0.1, 0.1, 0.1)])
    [first, second] = bars(chart("t", [one, other], "f"))
    assert first == second


def test_whiskers_reach_from_the_lowest_run_to_the_highest_and_only_where_there_are_several() -> None:
    drawn = chart("t", [Panel("p", [Bar("c", "a", 40, 20, 80), Bar("c", "b", 10, 10, 10)])], "f")
    lines = [
        (float(line.attrib["x1"]), float(line.attrib["x2"]))
        for line in ElementTree.fromstring(drawn).iter(f"{SVG}line")
        if line.attrib["class"] == "whisker"
    ]
    [length, _] = bars(drawn)
    [(low, high), *ends] = lines
    assert len(ends) == 2
    assert high - low == pytest.approx(60 / 40 * length, abs=0.2)


def test_words_are_escaped_and_bars_below_zero_or_all_zero_are_drawn() -> None:
    drawn = chart("a < b & c", [Panel("p", [Bar("c", "v", -1, -2, 0), Bar("c", "w", 0, 0, 0)])], "f")
    assert "a < b & c" in texts(drawn)
    assert bars(drawn) == [0, 0]


def test_results_are_saved_for_people_and_for_the_plot(tmp_path: Path) -> None:
    path = tmp_path / "made" / "results.json"
    results.save(path, FACTS, FIGURES)
    assert results.load(path) == (FACTS, FIGURES)
    with path.with_suffix(".csv").open(encoding="utf-8") as file:
        first, *rest = csv.DictReader(file)
    assert len(rest) == 3
    assert first["variant"] == "none"
    assert (first["median"], first["lowest"], first["highest"], first["runs"]) == ("40000.0", "36000.0", "44000.0", "3")


def test_the_plot_has_a_file_a_scenario_and_a_panel_a_metric(tmp_path: Path) -> None:
    results.save(tmp_path / "results.json", FACTS, FIGURES)
    written = results.plot(tmp_path / "results.json", tmp_path / "drawn")
    assert [path.name for path in written] == ["catch-up.svg", "latency.svg"]
    words = texts(written[0].read_text("utf-8"))
    assert {"Catch-up", "throughput, rows/s", "processor time, µs/row", "40,000 (36,000 … 44,000)"} <= set(words)
    assert words[-1] == "2 × some processor; 2026-01-01 00:00 UTC"


def test_a_soak_compares_its_beginning_with_its_end() -> None:
    assert first_and_last([50.0] * 10 + [60.0 + n for n in range(100)]) == (64.5, 154.5)
    assert first_and_last([1.0, 2.0, 3.0, 4.0]) == (3.0, 4.0)


def test_full_is_larger_and_an_option_wins() -> None:
    def of(*argv: str) -> Sizes:
        return sizes(command_line().parse_args(argv))

    assert of() == Sizes()
    assert of("--full") == FULL
    assert of("catchup", "--full", "--rows", "7", "--tls", "on").rows == 7
    assert of("--full", "--tls", "on").tls == ("on",)
    assert of("--backlog", "10", "20").backlog == (10, 20)


def test_every_scenario_is_named_in_the_documentation() -> None:
    page = (Path(__file__).parents[2] / "docs/performance.md").read_text("utf-8")
    assert [name for name in SCENARIOS if f"`{name}`" not in page] == []
