"""The ten failures of the original system, each as a test that it would not have passed.

Where other tests go further, their file is named.
"""

from collections.abc import Callable
from dataclasses import replace
from datetime import date, timedelta

import numpy as np
import pyarrow as pa
import pytest

from ktrdr_pipelines.domain.calendars.registry import calendar_named
from ktrdr_pipelines.domain.instruments import Series
from ktrdr_pipelines.domain.intervals import Interval
from ktrdr_pipelines.domain.planning.jobs import Bounds, Mode, RequestedBy
from ktrdr_pipelines.domain.planning.responses import BarRequest
from ktrdr_pipelines.domain.timeframes import Timeframe
from ktrdr_pipelines.errors import ForeignIdentityError, GatewayTimeoutError, RequestRejectedError
from ktrdr_pipelines.ib.pacing.rules import (
    PacedRequest,
    RequestKind,
    SentRequest,
    earliest,
    pacing_of,
)
from ktrdr_pipelines.sync.runner import Job
from tests.support.fake_gateway import dense_keys, keys_of, utc
from tests.support.loading import World

MakeWorld = Callable[..., World]
RTH = "XNYS.RTH"


def test_1_weekends_and_holidays_are_no_gaps(world: MakeWorld) -> None:
    """A year with its 104 weekend days and its holidays has no gap, and nothing is requested again.

    The original counted 321 and 3,140 false gaps. See also tests/sync/engine/test_series_run.
    """
    made = world(RTH, Timeframe.H1, date(2023, 1, 3), date(2024, 1, 3))
    report = made.load()
    assert (report.is_complete, len(report.unexplained)) == (True, 0)
    made.check_complete()
    assert made.load().requests == 0


@pytest.mark.parametrize("days", [*range(31, 45), 70])
def test_2_no_span_loses_days_at_the_borders_of_its_chunks(world: MakeWorld, days: int) -> None:
    """Spans of 31 to 44 days raised, 70 days fetched 60; each is whole now."""
    first = date(2024, 2, 5)
    made = world(RTH, Timeframe.H1, first, first + timedelta(days=days))
    assert made.load().is_complete
    made.check_complete()


def test_3_an_empty_response_is_a_response_and_a_failed_chunk_is_a_gap(world: MakeWorld) -> None:
    """A confirmed empty range is not requested again; a failed one is never reported as success."""
    keys = dense_keys(RTH, Timeframe.M1, date(2024, 5, 1), date(2024, 7, 20))
    quiet = calendar_named(RTH).days_of(keys) == np.datetime64("2024-06-12")
    made = world(RTH, Timeframe.M1, date(2024, 6, 3), date(2024, 6, 29), keys=keys[~quiet])
    made.harness.gateway.mutate = lambda request, bars: (
        RequestRejectedError("bars") if request.ends_at == utc(2024, 6, 20, 13, 30) else bars
    )
    report = made.load()
    assert not report.is_complete
    days = [part.start.date() for part in report.unexplained]
    assert days == [date(2024, 6, 12), date(2024, 6, 18)]
    made.harness.gateway.mutate = None
    report = made.load_until_confirmed()
    assert report.is_complete
    made.check_complete()
    assert made.load().requests == 0


def test_4_identical_means_the_same_request_and_limits_are_enforced() -> None:
    """Two intervals of one series need not wait for each other; the same interval twice must.

    tests/ib/pacing/test_rate_limiter covers that every request passes the budget.
    """
    rules = pacing_of().rules

    def request(identical: str) -> PacedRequest:
        return PacedRequest(RequestKind.BARS, "AAPL@SMART TRADES", identical)

    sent = [SentRequest(100.0, request("AAPL 1m, 1 D to Tuesday"))]
    assert earliest(rules, sent, request("AAPL 1m, 1 D to Monday")) <= 100.0
    assert earliest(rules, sent, request("AAPL 1m, 1 D to Tuesday")) >= 115.0


def test_5_equal_bars_stay_and_loading_a_part_keeps_the_rest(world: MakeWorld) -> None:
    """Bars that differ only by time are all kept, and loading a part leaves the rest as it is."""
    made = world(RTH, Timeframe.M1, date(2024, 6, 3), date(2024, 6, 8))
    place = made.harness.true_bars(made.series).bars.schema.get_field_index("close")
    made.harness.gateway.mutate = lambda _, bars: bars.set_column(
        place, bars.schema.field("close"), pa.array([7.0] * bars.num_rows)
    )
    made.load()
    assert made.harness.store.rows(made.series, made.wanted) == 5 * 390
    part = Interval(utc(2024, 6, 5, 4), utc(2024, 6, 6, 4))
    made.harness.run(Job(made.series, bounds=Bounds(part.start, part.end), refresh=True))
    assert made.harness.store.rows(made.series, made.wanted) == 5 * 390


def test_6_missing_values_are_null_and_no_price_is_invented(world: MakeWorld) -> None:
    """A gap in a response stays a gap: no bar, no zero and no 100.0 fills it.

    tests/ib/protocol/test_bar_messages covers that -1 becomes null.
    """
    keys = dense_keys("FX", Timeframe.M5, date(2024, 6, 3), date(2024, 6, 20))
    keys = keys[np.random.default_rng(1).random(len(keys)) < 0.5]
    made = world("FX", Timeframe.M5, date(2024, 6, 10), date(2024, 6, 15), keys=keys)
    assert made.load().is_complete
    made.check_complete()
    stored = keys_of(made.harness.store.read(made.series))
    assert set(stored) <= set(keys.tolist())


def test_7_hours_and_kinds_never_mix_in_one_file(world: MakeWorld) -> None:
    """Files of regular hours refuse bars of extended hours, and those of another contract.

    tests/domain/universe/test_defaults covers that EURUSD is CASH and a future stays one.
    """
    made = world(RTH, Timeframe.H1, date(2024, 6, 3), date(2024, 6, 8))
    made.load()
    other = Series(replace(made.series.instrument, use_rth=False), Timeframe.H1)
    wider = Interval(made.wanted.start - timedelta(days=9), made.wanted.end)
    assert isinstance(made.harness.load(other, wider).error, ForeignIdentityError)
    made.harness.gateway.contract_ids["AAPL"] = 1
    assert isinstance(made.harness.load(made.series, wider).error, ForeignIdentityError)
    made.check_complete()


def test_8_tails_leave_no_gap_and_full_fills_gaps_inside(world: MakeWorld) -> None:
    """A tail after 60 days, a tail on Friday evening and a load of a gap inside are complete."""
    made = world(RTH, Timeframe.H1, date(2024, 2, 1), date(2024, 6, 29), now=utc(2024, 6, 28, 21))
    early = Interval(made.wanted.start, utc(2024, 4, 26, 4))
    made.harness.load(made.series, early)
    bounds = Bounds(made.wanted.start)
    (report,) = made.harness.run(Job(made.series, Mode.TAIL, bounds))
    assert report.is_complete
    made.check_complete()
    gapped = world(RTH, Timeframe.H1, date(2024, 2, 1), date(2024, 6, 29), now=utc(2024, 7, 1))
    for start, end in ((utc(2024, 2, 1), utc(2024, 3, 1)), (utc(2024, 5, 1), utc(2024, 6, 29))):
        gapped.harness.load(gapped.series, Interval(start, end))
    (report,) = gapped.harness.run(Job(gapped.series, Mode.FULL, bounds))
    assert report.is_complete
    gapped.check_complete()


def test_9_an_open_connection_without_responses_is_no_success(world: MakeWorld) -> None:
    """Every request ends; a timeout covers nothing, is reported, and retries are limited.

    tests/ib/connection covers deadlines and round trips.
    """
    made = world(RTH, Timeframe.M1, date(2024, 6, 3), date(2024, 6, 29))
    made.harness.gateway.mutate = lambda *_: GatewayTimeoutError("bars", reason="no answer")
    report = made.load()
    assert not report.is_complete
    assert not made.harness.store.coverage(made.series)
    request_count = made.harness.request_count
    made.harness.run(Job(made.series, bounds=_all(made), requested_by=RequestedBy.SENSOR))
    assert made.harness.request_count - request_count <= 2 * 8


def test_10_readiness_is_known_for_any_range(world: MakeWorld) -> None:
    """A report has the missing intervals of a range, or states that it is complete.

    tests/store/catalog/test_catalog covers the close of each bar, against looking ahead.
    """
    made = world(RTH, Timeframe.M1, date(2024, 6, 3), date(2024, 6, 8))

    def missing(request: BarRequest, bars: pa.Table) -> pa.Table | RequestRejectedError:
        return RequestRejectedError("bars") if request.ends_at == utc(2024, 6, 6, 13, 30) else bars

    made.harness.gateway.mutate = missing
    made.load()
    ready = made.harness.load(made.series, Interval(utc(2024, 6, 6, 4), utc(2024, 6, 8, 4)))
    assert (ready.is_complete, ready.requests) == (True, 0)
    lacking = made.load()
    assert [(part.start, part.end) for part in lacking.unexplained] == [
        (utc(2024, 6, 5, 13, 30), utc(2024, 6, 5, 20))
    ]


def _all(made: World) -> Bounds:
    return Bounds(made.wanted.start, made.wanted.end)
