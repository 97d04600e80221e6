"""What the table of benchmarks says of figures, and when a small form fails."""

import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.benchmarks.measuring import (
    Benchmark,
    References,
    Target,
    cost_of_command,
    results_of,
    rows_of,
    write_table,
)

SHARE = Target("share", "share of an oracle", 0.95)
TIME = Target("time", "of the ideal time", 1.05, more_is_better=False)


def _benchmark(*rounds: tuple[float, float]) -> Benchmark:
    """Return a benchmark that measures a share and a time in each round."""
    found = iter(rounds)

    def measure() -> Mapping[str, float]:
        return dict(zip((SHARE.key, TIME.key), next(found), strict=True))

    return Benchmark([SHARE, TIME], measure)


def test_the_best_of_all_rounds_counts_for_each_target() -> None:
    """The highest share and the lowest time, even of different rounds."""
    results = results_of(_benchmark((0.7, 1.04), (0.96, 1.4)), rounds=2, references={})
    assert [one.now for one in results] == [0.96, 1.04]
    assert [one.document()["met"] for one in results] == [True, True]


def test_a_figure_that_just_misses_its_reach_does_not_look_met() -> None:
    """It has more digits than the reach; one that meets it has two."""
    missed = rows_of(results_of(_benchmark((0.947, 1.0501)), rounds=1, references={}))
    assert [row[1:] for row in missed[1:]] == [
        ["0.9470", ">= 0.95", "missed"],
        ["1.0501", "<= 1.05", "missed"],
    ]
    met = rows_of(results_of(_benchmark((0.951, 1.049)), rounds=1, references={}))
    assert [row[1:] for row in met[1:]] == [
        ["0.95", ">= 0.95", "met"],
        ["1.05", "<= 1.05", "met"],
    ]


def test_a_ratio_has_failed_at_half_of_its_reference() -> None:
    """A share that is half as large, or a time that is twice as long."""
    references = {"share": 0.9, "time": 1.1}
    fine = results_of(_benchmark((0.46, 2.1)), rounds=1, references=references)
    fallen = results_of(_benchmark((0.45, 2.3)), rounds=1, references=references)
    assert [one.has_failed for one in fine] == [False, False]
    assert [one.has_failed for one in fallen] == [True, True]


def test_a_fallen_ratio_is_measured_again_while_rounds_are_left() -> None:
    """A round that other processes disturbed fails nothing, and a good one ends the measurement."""
    rounds = ((0.2, 1.1), (0.9, 1.1))  # a third one would fail
    results = results_of(_benchmark(*rounds), rounds=3, references={"share": 0.9, "time": 1.1})
    assert not any(one.has_failed for one in results)


def test_what_is_required_fails_whatever_the_reference() -> None:
    """A violation of the budget is a fault, also where no reference exists."""
    broken = Target("violations", "violations", 0, more_is_better=False, is_required=True)
    benchmark = Benchmark([broken], lambda: {broken.key: 1.0})
    [result] = results_of(benchmark, rounds=1, references={})
    assert result.has_failed


def test_a_violation_of_one_round_is_not_outvoted() -> None:
    """A second round without any does not undo it."""
    broken = Target("violations", "violations", 0, more_is_better=False, is_required=True)
    rounds = iter((1.0, 0.0, 0.0))
    benchmark = Benchmark([broken], lambda: {broken.key: next(rounds)})
    [result] = results_of(benchmark, rounds=3, references={"share": 0.9})
    assert result.has_failed


def test_references_keep_what_was_not_measured(tmp_path: Path) -> None:
    """A group replaces the ratios that it measured; others, and those of other groups, stay."""
    path = tmp_path / "reference.json"
    path.write_text('{"store": {"made": {}, "ratios": {"plan": 0.5}}}')
    references = References(path, "gateway")
    for rounds in ((0.8, 1.2), (0.9, 1.1)):
        [share, _] = results_of(_benchmark(rounds), rounds=1, references={})
        references.write([share], {"on": "a day"})
    assert references.ratios() == {"share": 0.9}
    assert References(path, "store").ratios() == {"plan": 0.5}


def test_a_table_replaces_the_one_between_its_marks(tmp_path: Path) -> None:
    """Everything around them stays; a page without them is an error."""
    path = tmp_path / "page.md"
    path.write_text("one\n<!-- benchmarks of store -->\nold\n<!-- end of store -->\ntwo\n")
    for text in ("new", "newer"):
        write_table(path, "store", text)
    assert path.read_text() == (
        "one\n<!-- benchmarks of store -->\nnewer\n<!-- end of store -->\ntwo\n"
    )
    with pytest.raises(ValueError, match="has no marks"):
        write_table(path, "gateway", "new")


def test_a_command_costs_processor_time_and_must_end() -> None:
    """What it printed is returned, and part of the error of one that fails or hangs."""
    found = cost_of_command([sys.executable, "-c", "print(sum(range(10**6)))"], {})
    assert found.output == "499999500000\n"
    assert found.cpu_s > 0
    with pytest.raises(RuntimeError, match=r"exit code 3\nwhy"):
        cost_of_command([sys.executable, "-c", "print('why'); raise SystemExit(3)"], {})
    with pytest.raises(TimeoutError, match=r"did not end in 0\.1 s"):
        cost_of_command([sys.executable, "-c", "import time; time.sleep(60)"], {}, longest_s=0.1)
