"""Tail runs: they load what has just closed, in one run, and report only new windows."""

from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from typing import Any

import dagster as dg
import pytest

from ktrdr_pipelines.defs.partitions import BarPartition
from ktrdr_pipelines.defs.runs.outcome import materialization
from ktrdr_pipelines.defs.runs.reported_windows import ReportedWindow
from ktrdr_pipelines.defs.runs.tags import CAUSE, KILLED, KIND, QUIET, TIMEFRAME
from ktrdr_pipelines.defs.schedules import request_tails
from ktrdr_pipelines.domain.calendars.registry import calendar_named
from ktrdr_pipelines.domain.calendars.session_grid import session_grid
from ktrdr_pipelines.domain.intervals import Interval, IntervalSet
from ktrdr_pipelines.domain.planning.responses import BarRequest
from ktrdr_pipelines.domain.timeframes import Timeframe
from ktrdr_pipelines.errors import GatewayError, GatewayUnreachableError, RequestRejectedError
from ktrdr_pipelines.gaps.windows import WindowState, WindowStatus

NOW = datetime(2026, 6, 12, 12, tzinfo=UTC)


@pytest.fixture
def fresh(loaded: Any, remove: Callable[..., int]) -> Any:
    """Return a location with the daily bars of AAPL alone, without the newest session."""
    loaded.write_universe(
        "defaults: {timeframes: [1d], start: 2023-03-01}\n"
        "windows: {yearly: 2020}\nsymbols: {AAPL: {}}"
    )
    assert loaded.run("1d", "AAPL|2026", "AAPL|2026").success
    assert remove(loaded, "AAPL", "1d", [date(2026, 6, 11)]) == 1
    return loaded


def decide(location: Any, now: datetime) -> Any:
    """Return what the schedule decides at a time."""
    resources = location.defs().resources
    return request_tails(location.instance, resources["ib"], resources["store"], now)


def test_no_run_is_requested_until_a_bar_has_closed(fresh: Any) -> None:
    """Neither in the session, nor before its daily bar is final."""
    assert fresh.run_tails("1d").success
    times = {
        "in the session": NOW + timedelta(hours=5),
        "just after its close": datetime(2026, 6, 12, 20, 5, tzinfo=UTC),
        "in the night before": datetime(2026, 6, 12, 3, tzinfo=UTC),
    }
    for name, at in times.items():
        decided = decide(fresh, at)
        assert isinstance(decided, dg.SkipReason), name
        assert decided.skip_message == "no tail is due: the bars that have closed are stored"
    due_at = datetime(2026, 6, 12, 20, 30, tzinfo=UTC)
    assert isinstance(decide(fresh, due_at), dg.RunRequest)


def test_due_tails_are_loaded_by_one_run(fresh: Any) -> None:
    """The request names the timeframes, its priority, and when the newest bar is final."""
    decided = decide(fresh, NOW)
    assert isinstance(decided, dg.RunRequest)
    assert decided.tags[KIND] == "tail"
    assert decided.tags[TIMEFRAME] == "1d"
    assert int(decided.tags["dagster/priority"]) > 0
    config = decided.run_config["ops"]["load_tails"]["config"]
    assert config == {"timeframes": ["1d"], "not_before": (NOW + timedelta(seconds=6)).isoformat()}


def test_a_tail_requests_only_the_missing_session(fresh: Any) -> None:
    """One request, one bar; a window that is known as open is not materialized again."""
    before = len(fresh.history())
    done = fresh.run_tails("1d")
    assert done.success
    assert len(fresh.history()) - before == 1
    assert date(2026, 6, 11) in fresh.store.rows_per_session(fresh.series("AAPL", "1d"))
    assert fresh.materialized("1d", done.run_id) == {}
    run = fresh.instance.get_run_by_id(done.run_id)
    assert run is not None
    assert run.tags[QUIET] == "yes"
    again = fresh.run_tails("1d")
    assert again.success
    assert len(fresh.history()) - before == 1


def test_the_first_bars_of_a_window_materialize_it(fresh: Any) -> None:
    """A window that Dagster does not know is materialized as open; the run is not quiet."""
    fresh.instance.wipe_assets([dg.AssetKey(["bars", "1d"])])
    done = fresh.run_tails("1d")
    [(window, (_, state))] = fresh.materialized("1d", done.run_id).items()
    assert (window, state) == ("AAPL|2026", "open")
    run = fresh.instance.get_run_by_id(done.run_id)
    assert run is not None
    assert QUIET not in run.tags


def test_a_second_run_of_an_active_tail_is_not_requested(fresh: Any) -> None:
    """The timeframes of an active run are left to it."""
    decided = decide(fresh, NOW)
    assert isinstance(decided, dg.RunRequest)
    job = fresh.defs().resolve_job_def("tails")
    fresh.instance.create_run_for_job(
        job, tags=decided.tags, run_config=decided.run_config, status=dg.DagsterRunStatus.STARTED
    )
    again = decide(fresh, NOW)
    assert isinstance(again, dg.SkipReason)
    assert again.skip_message == "1 series of 1d due; the previous run is still loading them"


def test_a_series_that_is_empty_or_far_behind_has_no_tail(location: Any) -> None:
    """Its bars are loaded as gaps."""
    assert isinstance(decide(location, NOW), dg.SkipReason)
    assert location.run("1d", "AAPL|2025", "AAPL|2025").success
    assert isinstance(decide(location, NOW), dg.SkipReason)


def test_a_failed_tail_is_deferred(fresh: Any, failing_ib: Callable[..., Any]) -> None:
    """The run fails with its cause, and no run is requested before the next attempt is due."""

    def fails(request: BarRequest) -> GatewayError | None:
        return RequestRejectedError(str(request), reason="refused by the test")

    done = fresh.run_tails("1d", ib=failing_ib(fails))
    assert not done.success
    run = fresh.instance.get_run_by_id(done.run_id)
    assert run is not None
    assert run.tags["ktrdr/cause"] == "IncompleteError"
    [attempt] = fresh.store.ledger.attempts.of("AAPL|1d")
    assert attempt.next_try_at is not None
    decided = decide(fresh, attempt.next_try_at - timedelta(minutes=1))
    assert isinstance(decided, dg.SkipReason)


def test_no_tail_runs_while_the_gateway_is_unreachable(
    fresh: Any, failing_ib: Callable[..., Any]
) -> None:
    """The first run that cannot connect records the absence, which stops later ones."""

    def unreachable(request: BarRequest) -> GatewayError | None:
        return GatewayUnreachableError(str(request), reason="nothing listens")

    assert not fresh.run_tails("1d", ib=failing_ib(unreachable)).success
    known = fresh.absence()
    assert known is not None
    decided = decide(fresh, known.seen_at)
    assert isinstance(decided, dg.SkipReason)
    assert "the gateway is away since" in str(decided.skip_message)


def test_a_run_loads_each_minute_once_it_is_final_until_none_is_due(moved: Any) -> None:
    """It begins no further minute after its time, nor when a minute has no tails."""
    moved.write_universe(
        "defaults: {timeframes: [1m], start: 2026-06-12}\n"
        "windows: {1m: 2026, yearly: 2020}\nsymbols: {EURUSD: {}}"
    )
    moved.instance.add_dynamic_partitions("symbols_1m", ["EURUSD"])
    now, slept = NOW + timedelta(seconds=30), list[float]()
    moved.gateway.clock.set(now)

    def sleep(seconds: float) -> None:
        nonlocal now
        slept.append(seconds)
        now += timedelta(seconds=seconds)
        moved.gateway.clock.set(now)

    def newest() -> datetime:
        coverage = moved.store.coverage(moved.series("EURUSD", "1m"))
        return coverage.bars.bounds.end

    assert moved.run("1m", "EURUSD|2026", "EURUSD|2026").success
    assert newest() == NOW
    assert moved.run_tails_for("1m", 150.0, lambda: now, sleep=sleep).success
    assert newest() == NOW + timedelta(minutes=3)
    assert slept == [0, 36, 60, 60]
    now = datetime(2026, 6, 13, 12, tzinfo=UTC)
    moved.gateway.clock.set(now)
    assert moved.run_tails_for("1m", 150.0, lambda: now, sleep=sleep).success
    assert slept[4:] == [0]


def test_a_run_that_waits_when_dagster_stops_is_tagged_as_killed(fresh: Any) -> None:
    """So that the end of ``ktrdr up`` is no failure of its symbols."""

    def interrupted(_: float) -> None:
        raise dg.DagsterExecutionInterruptedError

    done = fresh.run_tails_for("1d", 0.0, lambda: NOW, sleep=interrupted)
    assert not done.success
    run = fresh.instance.get_run_by_id(done.run_id)
    assert run is not None
    assert run.tags[CAUSE] == KILLED


def test_no_further_minute_is_loaded_after_the_end_of_the_run(fresh: Any) -> None:
    """Dagster may have marked it as canceled, and started another one, while it slept."""
    before = len(fresh.gateway.requests)

    def end(_: float) -> None:
        (run,) = fresh.instance.get_runs(dg.RunsFilter(statuses=[dg.DagsterRunStatus.STARTED]))
        fresh.instance.report_run_canceled(run)

    fresh.run_tails_for("1d", 600.0, lambda: NOW, sleep=end)
    assert len(fresh.gateway.requests) == before


def report_as_open(location: Any, rows: int, as_of: datetime) -> None:
    """Report the open year of AAPL's daily bars with some bars at a time."""
    window = Interval(datetime(2026, 1, 1, tzinfo=UTC), datetime(2027, 1, 1, tzinfo=UTC))
    status = WindowStatus(window, WindowState.OPEN, rows, IntervalSet())
    event = materialization(Timeframe.D1, BarPartition("AAPL", "2026"), status, now=as_of)
    location.instance.report_runless_asset_event(event)


def test_an_open_window_is_reported_as_it_grows(fresh: Any) -> None:
    """The run that adds the bar of a closed session says so in a short event, and is quiet."""
    report_as_open(fresh, 110, datetime(2026, 6, 11, 12, tzinfo=UTC))
    done = fresh.run_tails("1d")
    [(window, (rows, state))] = fresh.materialized("1d", done.run_id).items()
    assert (window, rows, state) == ("AAPL|2026", 111, "open")
    [record] = fresh.instance.fetch_materializations(dg.AssetKey(["bars", "1d"]), limit=1).records
    assert set(record.asset_materialization.metadata) == {
        "dagster/partition_row_count",
        "state",
        "as_of",
    }
    run = fresh.instance.get_run_by_id(done.run_id)
    assert run is not None
    assert run.tags[QUIET] == "yes"


CLOSED = datetime(2026, 6, 11, 20, 30, tzinfo=UTC)
"""The moment at which a session's bars are complete."""


@pytest.mark.parametrize(
    ("as_of", "rows", "now", "is_due"),
    [
        (CLOSED, 100, CLOSED + timedelta(minutes=59), False),  # grew within the hour
        (CLOSED, 100, CLOSED + timedelta(minutes=60), True),
        (CLOSED, 101, CLOSED + timedelta(hours=12), False),  # did not grow
        (CLOSED - timedelta(minutes=1), 101, CLOSED, True),  # the session has closed since
        (CLOSED - timedelta(minutes=2), 100, CLOSED - timedelta(minutes=1), False),
    ],
)
def test_an_open_window_is_reported_hourly_and_at_the_close(
    as_of: datetime, rows: int, now: datetime, is_due: bool
) -> None:
    """At most once an hour within a session, only if it has more bars, and once after it."""
    window = Interval(datetime(2026, 1, 1, tzinfo=UTC), datetime(2027, 1, 1, tzinfo=UTC))
    status = WindowStatus(window, WindowState.OPEN, 101, IntervalSet())
    reported = ReportedWindow(WindowState.OPEN, rows, as_of)
    grid = session_grid(calendar_named("XNYS.RTH"), Timeframe.M1)
    assert reported.needs_event(status, grid, now) is is_due
