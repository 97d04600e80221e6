"""ktrdr demo, in an empty folder and repeated: a gateway, Dagster, Parquet, DuckDB."""

import signal
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from ktrdr_pipelines.app.views.service_documents import DemoDocument
from ktrdr_pipelines.cli.demo_runs import demo_windows
from ktrdr_pipelines.domain.timeframes import Timeframe


def test_windows_reach_back_from_today() -> None:
    """Daily windows go five years back, hourly ones one year, and minutes have this year."""
    assert demo_windows(date(2024, 3, 31)) == {
        Timeframe.D1: ("2019", "2024"),
        Timeframe.H1: ("2023", "2024"),
        Timeframe.M1: ("2024", "2024"),
    }


def test_minutes_have_the_year_before_in_january() -> None:
    """On its first days this year has too few bars to show."""
    assert demo_windows(date(2024, 1, 1))[Timeframe.M1] == ("2023", "2024")


@pytest.mark.slow
def test_the_demo_completes_and_a_second_one_requests_little(
    process: Any, ktrdr: Any, data: Path
) -> None:
    """Every series is complete, its windows materialized; the second demo sends few requests."""
    first = process("demo", "--json")
    assert (first.code, first.err) == (0, "")
    document = first.document
    assert DemoDocument.model_validate(document).complete
    assert len(document["series"]) == 9
    assert [one for one in document["series"] if one["gaps"] or not one["bars"]] == []
    assert [run["windows"] for run in document["runs"]] == [18, 6, 3]
    assert all(run["requests"] and not run["error"] for run in document["runs"])
    assert all(len(query["rows"]) == 5 for query in document["queries"])
    assert document["took_s"] > 0

    second = process("demo")
    assert second.code == 0
    requests = [int(line.split(" requests")[0].split()[-1]) for line in second.err.splitlines()[1:]]
    assert sum(requests) < sum(run["requests"] for run in document["runs"]) / 10
    for part in (
        str(data / "demo"),
        "EURUSD",
        "Gaps are those in the windows of these runs",
        "ktrdr up --simulate",
        "Next:",
    ):
        assert part in second.out


@pytest.mark.slow
def test_a_stopped_demo_leaves_no_process(helpers: Any, data: Path) -> None:
    """Ctrl-C during a run ends it in order, together with the simulator's process."""
    with helpers.started("demo") as demo:
        while "Dagster run of 1d" not in (line := demo.stderr.readline()):
            assert line, "the demo ended early"
        groups = helpers.children_groups(demo.pid)
        demo.send_signal(signal.SIGINT)
        out, err = demo.communicate(timeout=180)
    assert (demo.returncode, out, err) == (130, "", "stopped; what was saved is kept\n")
    assert len(groups) == 1
    assert [one for group in groups for one in helpers.group_members(group)] == []
    assert list((data / "demo").glob("bars/symbol=AAPL/timeframe=1d/*.parquet"))
