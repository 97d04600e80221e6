"""Tails: only what has just closed, one run for all, and no word of windows that are known."""

from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from typing import Any

import dagster as dg
import pytest

from ktrdr_pipelines.defs.resources import IbResource, StoreResource
from ktrdr_pipelines.defs.runs.tags import KIND, QUIET, TIMEFRAME
from ktrdr_pipelines.defs.runs.tail_run import TailRun
from ktrdr_pipelines.defs.schedules import request_tails
from ktrdr_pipelines.domain.planning.responses import BarRequest
from ktrdr_pipelines.domain.timeframes import Timeframe
from ktrdr_pipelines.errors import GatewayError, GatewayUnreachableError, RequestRejectedError

NOW = datetime(2026, 6, 12, 12, tzinfo=UTC)


@pytest.fixture
def fresh(location: Any, forget: Callable[..., int]) -> Any:
    """Give a location whose AAPL days are all there, but for the newest session."""
    assert location.run("1d", "AAPL|2026", "AAPL|2026").success
    assert forget(location, "AAPL", "1d", [date(2026, 6, 11)]) == 1
    return location


def run_tails(location: Any, *timeframes: str, **overrides: Any) -> Any:
    """Run tails by the gateway's clock."""

    @dg.op
    def tails(context: dg.OpExecutionContext, ib: IbResource, store: StoreResource) -> None:
        wanted = [Timeframe(name) for name in timeframes]
        TailRun(context, wanted, ib=ib, store=store, clock=lambda: NOW).load(0)

    @dg.job(resource_defs={**location.defs().resources, **overrides})
    def tails_now() -> None:
        tails()

    return tails_now.execute_in_process(instance=location.instance, raise_on_error=False)


def at_now(location: Any, now: datetime) -> Any:
    """Let the schedule decide at a moment."""
    resources = location.defs().resources
    return request_tails(location.instance, resources["ib"], resources["store"], now)


def told(location: Any, run_id: str) -> list[tuple[str, str]]:
    """Give the windows that a run told of, with what it said."""
    records = location.instance.fetch_materializations(
        dg.AssetKey(["bars", "1d"]), limit=100
    ).records
    return [
        (str(one.partition_key), str(one.asset_materialization.metadata["state"].value))
        for one in records
        if one.run_id == run_id
    ]


def test_nothing_runs_where_nothing_has_closed(fresh: Any) -> None:
    """At night, at weekends and on holidays no run is asked for."""
    assert run_tails(fresh, "1d").success
    whens = {
        "in the session": NOW + timedelta(hours=5),
        "just after its close": datetime(2026, 6, 12, 20, 5, tzinfo=UTC),
        "in the night before": datetime(2026, 6, 12, 3, tzinfo=UTC),
    }
    for name, when in whens.items():
        decided = at_now(fresh, when)
        assert isinstance(decided, dg.SkipReason), name
        assert decided.skip_message == "no tail is due: the bars that have closed are stored"
    due_at = datetime(2026, 6, 12, 20, 30, tzinfo=UTC)
    assert isinstance(at_now(fresh, due_at), dg.RunRequest)


def test_due_tails_of_all_symbols_are_one_run(fresh: Any) -> None:
    """The request names the timeframes, its priority, and when the newest bar is final."""
    decided = at_now(fresh, NOW)
    assert isinstance(decided, dg.RunRequest)
    assert decided.tags[KIND] == "tail"
    assert decided.tags[TIMEFRAME] == "1d"
    assert int(decided.tags["dagster/priority"]) > 0
    config = decided.run_config["ops"]["load_tails"]["config"]
    assert config == {"timeframes": ["1d"], "not_before": (NOW + timedelta(seconds=6)).isoformat()}


def test_tail_asks_for_the_missing_session_alone(fresh: Any) -> None:
    """One request, one bar; the window was told of before and is not told of again."""
    asked = len(fresh.history())
    done = run_tails(fresh, "1d")
    assert done.success
    assert len(fresh.history()) - asked == 1
    assert date(2026, 6, 11) in fresh.store.rows_per_session(fresh.series("AAPL", "1d"))
    assert told(fresh, done.run_id) == []
    run = fresh.instance.get_run_by_id(done.run_id)
    assert run is not None
    assert run.tags[QUIET] == "yes"
    again = run_tails(fresh, "1d")
    assert again.success
    assert len(fresh.history()) - asked == 1


def test_first_bars_of_a_window_are_told_of(fresh: Any) -> None:
    """Dagster does not know the window: the run tells of it, as open, and is not quiet."""
    fresh.instance.wipe_assets([dg.AssetKey(["bars", "1d"])])
    done = run_tails(fresh, "1d")
    assert told(fresh, done.run_id) == [("AAPL|2026", "open")]
    run = fresh.instance.get_run_by_id(done.run_id)
    assert run is not None
    assert QUIET not in run.tags


def test_tail_under_way_is_not_doubled(fresh: Any) -> None:
    """The timeframes of a run that has not ended are left to it."""
    decided = at_now(fresh, NOW)
    assert isinstance(decided, dg.RunRequest)
    job = fresh.defs().resolve_job_def("tails")
    fresh.instance.create_run_for_job(
        job, tags=decided.tags, run_config=decided.run_config, status=dg.DagsterRunStatus.STARTED
    )
    again = at_now(fresh, NOW)
    assert isinstance(again, dg.SkipReason)
    assert again.skip_message == "1 series of 1d due; the previous run is still loading them"


def test_series_that_is_behind_or_empty_is_not_a_tail(location: Any) -> None:
    """An empty store has gaps, not tails."""
    assert isinstance(at_now(location, NOW), dg.SkipReason)
    assert location.run("1d", "AAPL|2025", "AAPL|2025").success
    assert isinstance(at_now(location, NOW), dg.SkipReason)


def test_failed_tail_is_named_and_then_waits(fresh: Any, failing_ib: Callable[..., Any]) -> None:
    """The run fails by name; the next minute does not ask again."""

    def fails(request: BarRequest) -> GatewayError | None:
        return RequestRejectedError(str(request), reason="refused by the test")

    done = run_tails(fresh, "1d", ib=failing_ib(fails))
    assert not done.success
    run = fresh.instance.get_run_by_id(done.run_id)
    assert run is not None
    assert run.tags["ktrdr/cause"] == "IncompleteError"
    [attempt] = fresh.store.ledger.attempts.of("AAPL|1d")
    assert attempt.next_try_at is not None
    decided = at_now(fresh, attempt.next_try_at - timedelta(minutes=1))
    assert isinstance(decided, dg.SkipReason)


def test_while_the_gateway_is_away_no_tail_runs(fresh: Any, failing_ib: Callable[..., Any]) -> None:
    """The first one says so; the next ones are not started."""

    def away(request: BarRequest) -> GatewayError | None:
        return GatewayUnreachableError(str(request), reason="nothing listens")

    assert not run_tails(fresh, "1d", ib=failing_ib(away)).success
    known = fresh.absence()
    assert known is not None
    decided = at_now(fresh, known.seen_at)
    assert isinstance(decided, dg.SkipReason)
    assert "the gateway is away since" in str(decided.skip_message)
