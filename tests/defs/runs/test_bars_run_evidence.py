"""Windows with sparse, unconfirmed or contradicted sessions are materialized by nothing."""

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from itertools import count
from typing import Any

import dagster as dg
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from ktrdr_pipelines.defs.resources import IbResource, StoreResource
from ktrdr_pipelines.defs.runs.tags import KIND, RANGE_END, RANGE_START, RunKind
from ktrdr_pipelines.defs.runs.tail_run import TailRun
from ktrdr_pipelines.defs.sensors.materialization_sensor import report_sensor
from ktrdr_pipelines.domain.bars import rows_per_session
from ktrdr_pipelines.domain.calendars.registry import calendar_named
from ktrdr_pipelines.domain.calendars.sessions import interval_between
from ktrdr_pipelines.domain.planning.responses import BarRequest
from ktrdr_pipelines.domain.timeframes import Timeframe
from ktrdr_pipelines.errors import GatewayError, RequestRejectedError
from ktrdr_pipelines.store.bars.bar_file import read_file, write_file

NOW = datetime(2026, 6, 12, 12, tzinfo=UTC)
HOURS = dg.AssetKey(["bars", "1h"])


def thin_out(location: Any, day: date) -> None:
    """Leave one hourly bar of a session, and its coverage."""
    for path in location.layout.bar_files("AAPL", Timeframe.H1):
        status, bars = read_file(path)
        of_day = pc.equal(bars["session_date"], pa.scalar(day))
        rest = bars.filter(pc.invert(of_day))
        kept = pa.concat_tables([rest, bars.filter(of_day).slice(0, 1)]).sort_by("ts")
        counts = rows_per_session(kept)
        write_file(path, kept, replace(status, rows=kept.num_rows, rows_per_session=counts))


def left_open(location: Any, day: date, kind: str) -> None:
    """Record that a session of hours waits for another response."""
    interval = interval_between(
        calendar_named("XNYS.RTH"), Timeframe.H1, day, day + timedelta(days=1)
    )
    at = datetime.now(tz=UTC)
    due = at + timedelta(minutes=15)
    location.store.ledger.attempts.record(
        "AAPL|1h",
        interval,
        kind,
        error="a second response is due",
        code=None,
        next_try_at=due,
        at=at,
    )


def told(location: Any) -> set[str]:
    """Return the windows of hours that Dagster was told of."""
    records = location.instance.fetch_materializations(HOURS, limit=500).records
    return {str(one.partition_key) for one in records}


def failure_text(result: Any) -> str:
    """Return the description of the failure that ended the only step."""
    [event] = [event for event in result.all_events if event.is_step_failure]
    return str(event.step_failure_data.user_failure_data.description)


def tick(location: Any) -> None:
    """Let the report sensor look once at everything."""
    moments = iter(float(second > 1000) for second in count())
    resources = location.defs().resources
    context = dg.build_sensor_context(instance=location.instance, resources=resources)
    report_sensor(location.windows(), lambda: NOW, lambda: next(moments))(context)


def run_tails(location: Any) -> Any:
    """Load the tails of hours, by the gateway's clock."""

    @dg.op
    def tails(context: dg.OpExecutionContext, ib: IbResource, store: StoreResource) -> None:
        TailRun(context, [Timeframe.H1], ib=ib, store=store, clock=lambda: NOW).load(0)

    @dg.job(resource_defs=location.defs().resources)
    def tails_now() -> None:
        tails()

    return tails_now.execute_in_process(instance=location.instance, raise_on_error=False)


@pytest.fixture
def loaded(location: Any) -> Any:
    """Give a location with two years of hours that Dagster knows nothing of."""
    assert location.run("1h", "AAPL|2025", "AAPL|2026").success
    location.instance.wipe_assets([HOURS])
    return location


DAY = date(2025, 7, 9)
LATE = date(2026, 4, 15)
NEWEST = [date(2026, 6, 11), date(2026, 6, 12)]


def test_a_run_marks_no_window_with_a_sparse_session(
    loaded: Any, failing_ib: Callable[..., Any]
) -> None:
    """The session is covered, and has far fewer bars than its neighbours: the window is not."""
    thin_out(loaded, DAY)

    def refuses(request: BarRequest) -> GatewayError | None:
        return RequestRejectedError(str(request), reason="refused by the test")

    result = loaded.run("1h", "AAPL|2025", "AAPL|2026", ib=failing_ib(refuses))
    assert not result.success
    assert told(loaded) == {"AAPL|2026"}
    assert "\nAAPL 2025: missing" in failure_text(result)
    assert "1 sparse" in failure_text(result)


@pytest.mark.parametrize(
    ("kind", "reason"), [("probed", "unconfirmed"), ("contradicted", "contradicted")]
)
def test_a_run_marks_no_window_that_waits_for_a_response(
    loaded: Any, forget: Callable[..., int], kind: str, reason: str
) -> None:
    """A sensor's run leaves it until it is due, and fails with reason and time."""
    assert forget(loaded, "AAPL", "1h", [DAY]) == 7
    left_open(loaded, DAY, kind)
    tags = {KIND: RunKind.GAP.value, RANGE_START: "AAPL|2025", RANGE_END: "AAPL|2026"}
    result = loaded.run_tagged("1h", tags)
    assert not result.success
    assert told(loaded) == {"AAPL|2026"}
    assert f"1 {reason}, next request at " in failure_text(result)


@pytest.mark.parametrize("kind", ["sparse", "unconfirmed"])
def test_the_report_sensor_tells_of_no_such_window(
    loaded: Any, forget: Callable[..., int], kind: str
) -> None:
    """Nor does the sensor that looks for windows which Dagster does not know."""
    spoil(loaded, forget, DAY, kind)
    tick(loaded)
    assert "AAPL|2025" not in told(loaded)
    assert "AAPL|2026" in told(loaded)


@pytest.mark.parametrize("kind", ["sparse", "unconfirmed"])
def test_a_tail_tells_of_no_such_window(loaded: Any, forget: Callable[..., int], kind: str) -> None:
    """New bars come, and the window of the year is not marked while a session of it is open."""
    forget(loaded, "AAPL", "1h", NEWEST)
    spoil(loaded, forget, LATE, kind)
    assert run_tails(loaded).success
    assert loaded.store.rows_per_session(loaded.series("AAPL", "1h"))[date(2026, 6, 11)] == 7
    assert told(loaded) == set()


def test_a_tail_tells_of_a_window_without_one(loaded: Any, forget: Callable[..., int]) -> None:
    """The same run marks the window where nothing of it is open."""
    forget(loaded, "AAPL", "1h", NEWEST)
    assert run_tails(loaded).success
    assert told(loaded) == {"AAPL|2026"}


def spoil(location: Any, forget: Callable[..., int], day: date, kind: str) -> None:
    """Make a session sparse, or let it wait for a second response."""
    if kind == "sparse":
        thin_out(location, day)
    else:
        forget(location, "AAPL", "1h", [day])
        left_open(location, day, "probed")
