"""Windows with sparse, unconfirmed or contradicted sessions are never materialized."""

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from itertools import count
from typing import Any

import dagster as dg
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from ktrdr_pipelines.defs.runs.tags import KIND, RANGE_END, RANGE_START, RunKind
from ktrdr_pipelines.defs.sensors.materialization_sensor import report_sensor
from ktrdr_pipelines.domain.bars import rows_per_session
from ktrdr_pipelines.domain.calendars.registry import calendar_named
from ktrdr_pipelines.domain.calendars.sessions import interval_between
from ktrdr_pipelines.domain.planning.responses import BarRequest
from ktrdr_pipelines.domain.timeframes import Timeframe
from ktrdr_pipelines.errors import GatewayError, RequestRejectedError
from ktrdr_pipelines.store.bars.bar_file import read_file, write_file

NOW = datetime(2026, 6, 12, 12, tzinfo=UTC)


def thin_out(location: Any, day: date) -> None:
    """Leave one hourly bar of a session, and its coverage."""
    for path in location.layout.bar_files("AAPL", Timeframe.H1):
        status, bars = read_file(path)
        of_day = pc.equal(bars["session_date"], pa.scalar(day))
        rest = bars.filter(pc.invert(of_day))
        kept = pa.concat_tables([rest, bars.filter(of_day).slice(0, 1)]).sort_by("ts")
        counts = rows_per_session(kept)
        write_file(path, kept, replace(status, rows=kept.num_rows, rows_per_session=counts))


def record_attempt(location: Any, day: date, kind: str) -> None:
    """Record that a session of hourly bars waits for another response."""
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


def tick(location: Any) -> None:
    """Tick the report sensor over all series."""
    moments = iter(float(second > 1000) for second in count())
    resources = location.defs().resources
    context = dg.build_sensor_context(instance=location.instance, resources=resources)
    report_sensor(location.windows(), lambda: NOW, lambda: next(moments))(context)


DAY = date(2025, 7, 9)
LATE = date(2026, 4, 15)
NEWEST = [date(2026, 6, 11), date(2026, 6, 12)]


def test_a_run_does_not_materialize_a_window_with_a_sparse_session(
    loaded: Any, failing_ib: Callable[..., Any], failure_text: Callable[[Any], str]
) -> None:
    """The session is covered, with far fewer bars than its neighbours."""
    thin_out(loaded, DAY)

    def refuses(request: BarRequest) -> GatewayError | None:
        return RequestRejectedError(str(request), reason="refused by the test")

    result = loaded.run("1h", "AAPL|2025", "AAPL|2026", ib=failing_ib(refuses))
    assert not result.success
    assert set(loaded.materialized("1h")) == {"AAPL|2026"}
    assert "\nAAPL 2025: missing" in failure_text(result)
    assert "1 sparse" in failure_text(result)


@pytest.mark.parametrize(
    ("kind", "reason"), [("probed", "unconfirmed"), ("contradicted", "contradicted")]
)
def test_a_run_does_not_materialize_a_window_that_waits_for_a_response(
    loaded: Any,
    remove: Callable[..., int],
    failure_text: Callable[[Any], str],
    kind: str,
    reason: str,
) -> None:
    """A sensor's run defers it, and fails with the reason and the time of the next request."""
    assert remove(loaded, "AAPL", "1h", [DAY]) == 7
    record_attempt(loaded, DAY, kind)
    tags = {KIND: RunKind.GAP.value, RANGE_START: "AAPL|2025", RANGE_END: "AAPL|2026"}
    result = loaded.run_tagged("1h", tags)
    assert not result.success
    assert set(loaded.materialized("1h")) == {"AAPL|2026"}
    assert f"1 {reason}, next request at " in failure_text(result)


@pytest.mark.parametrize("kind", ["sparse", "unconfirmed"])
def test_the_report_sensor_does_not_materialize_such_a_window(
    loaded: Any, remove: Callable[..., int], kind: str
) -> None:
    """It materializes the complete window beside it."""
    make_incomplete(loaded, remove, DAY, kind)
    tick(loaded)
    assert "AAPL|2025" not in loaded.materialized("1h")
    assert "AAPL|2026" in loaded.materialized("1h")


@pytest.mark.parametrize("kind", ["sparse", "unconfirmed"])
def test_a_tail_does_not_materialize_such_a_window(
    loaded: Any, remove: Callable[..., int], kind: str
) -> None:
    """The new bars are saved, and the window of the year is not materialized."""
    remove(loaded, "AAPL", "1h", NEWEST)
    make_incomplete(loaded, remove, LATE, kind)
    assert loaded.run_tails("1h").success
    assert loaded.store.rows_per_session(loaded.series("AAPL", "1h"))[date(2026, 6, 11)] == 7
    assert loaded.materialized("1h") == {}


def test_a_tail_materializes_a_window_without_one(loaded: Any, remove: Callable[..., int]) -> None:
    """The same run materializes a window whose sessions are all complete."""
    remove(loaded, "AAPL", "1h", NEWEST)
    assert loaded.run_tails("1h").success
    assert set(loaded.materialized("1h")) == {"AAPL|2026"}


def make_incomplete(location: Any, remove: Callable[..., int], day: date, kind: str) -> None:
    """Make a session sparse, or let it wait for a second response."""
    if kind == "sparse":
        thin_out(location, day)
    else:
        remove(location, "AAPL", "1h", [day])
        record_attempt(location, day, "probed")
