"""Which ranges responses without bars confirm as empty, and which they do not."""

from collections.abc import Callable
from datetime import date, datetime, timedelta

import numpy as np
import pyarrow as pa
import pytest

from ktrdr_pipelines.cli.load_report import exit_code_of
from ktrdr_pipelines.domain.bars import bars_between, micros
from ktrdr_pipelines.domain.calendars.registry import calendar_named
from ktrdr_pipelines.domain.calendars.sessions import interval_between
from ktrdr_pipelines.domain.coverage import Coverage, Emptiness, ProofKind
from ktrdr_pipelines.domain.intervals import IntervalSet
from ktrdr_pipelines.domain.planning.chunks import BY_THE_YEAR
from ktrdr_pipelines.domain.planning.responses import BarRequest, NoData
from ktrdr_pipelines.domain.timeframes import Timeframe
from ktrdr_pipelines.errors import ExitCode, GatewayError, RequestTooLongError
from ktrdr_pipelines.store.ledger.attempts import AttemptKind
from ktrdr_pipelines.store.ledger.ledger import series_key
from ktrdr_pipelines.sync.engine.series_state import SeriesState
from tests.support.fake_gateway import (
    NO_DATA_TEXT,
    Mutation,
    dense_keys,
    keys_of,
    series_of,
    stock,
    true_bars_of,
    utc,
)
from tests.support.loading import World

MakeWorld = Callable[..., World]

RTH = "XNYS.RTH"


def ends_of(made: World) -> tuple[datetime, datetime]:
    """Return the ends of what is wanted."""
    return made.wanted.start, made.wanted.end


def without(first: date, end: date, timeframe: Timeframe, gone: set[date]) -> np.ndarray:
    """Return timestamps of a dense market that did not trade on some days."""
    keys = dense_keys(RTH, timeframe, first - timedelta(days=40), end + timedelta(days=20))
    days = calendar_named(RTH).days_of(keys)
    return keys[~np.isin(days, np.array(sorted(gone), dtype="datetime64[D]"))]


def no_data_at(*numbers: int) -> Mutation:
    """Return a mutation that has no data for the n-th requests, from 1."""
    count = iter(range(1, 10_000))

    def mutate(request: BarRequest, bars: pa.Table) -> pa.Table | NoData:
        return NoData(request, NO_DATA_TEXT) if next(count) in numbers else bars

    return mutate


def test_a_wide_empty_response_covers_nothing_by_itself(world: MakeWorld) -> None:
    """A spurious "no data" for a month is refuted: all bars are stored, nothing is empty."""
    made = world(RTH, Timeframe.H1, date(2024, 6, 3), date(2024, 6, 29))
    made.harness.gateway.mutate = no_data_at(1)
    assert made.load().is_complete
    made.check_complete()
    assert made.harness.store.coverage(made.series).empty == ()


def test_sessions_missing_inside_a_response_are_requested_once_more(world: MakeWorld) -> None:
    """Sessions without a bar among full ones take three statements on three days."""
    first, end = date(2024, 6, 3), date(2024, 6, 22)
    keys = without(first, end, Timeframe.H1, {date(2024, 6, 11), date(2024, 6, 12)})
    made = world(RTH, Timeframe.H1, first, end, keys=keys)
    report = made.load()
    assert [part.start.day for part in report.unexplained] == [11, 12]
    assert made.harness.gateway.sizes[0] == "14 D"
    assert report.requests <= 3
    began = made.harness.gateway.time
    assert made.load_until_confirmed().is_complete
    assert made.harness.gateway.time - began <= timedelta(days=3)
    made.check_complete()
    empty = made.harness.store.coverage(made.series).empty
    assert [proof.interval.start.day for proof in empty] == [11, 12]
    assert {proof.kind for proof in empty} == {ProofKind.DISPUTED}


def test_daily_bars_of_a_confirmation_are_refused_as_too_long_once(world: MakeWorld) -> None:
    """They are then requested by the year, and the confirmation is completed."""
    first, end = date(2024, 6, 3), date(2024, 6, 22)
    keys = without(first, end, Timeframe.H1, {date(2024, 6, 11), date(2024, 6, 12)})
    made = world(RTH, Timeframe.H1, first, end, keys=keys)
    refused: list[str] = []

    def mutate(request: BarRequest, bars: pa.Table) -> pa.Table | GatewayError:
        is_daily = request.series.timeframe is Timeframe.D1
        if is_daily and request.duration.endswith("D") and int(request.duration.split()[0]) > 2:
            refused.append(request.duration)
            return RequestTooLongError("bars", reason="162 Time length exceed max.")
        return bars

    made.harness.gateway.mutate = mutate
    assert made.load_until_confirmed().is_complete
    assert len(refused) == 1
    assert made.harness.ledger.widths.of("fake:1")[Timeframe.D1].most == BY_THE_YEAR
    made.check_complete()


def test_an_empty_end_of_a_session_is_requested_once_more_and_never_expires(
    world: MakeWorld,
) -> None:
    """Minutes without a trade at an open or a close take one more request at most."""
    first, end = date(2024, 6, 4), date(2024, 6, 5)
    keys = dense_keys(RTH, Timeframe.M1, first - timedelta(days=9), end + timedelta(days=9))
    minutes = (keys - micros(utc(2024, 6, 4, 13, 30))) // 60_000_000
    keys = keys[(minutes < 0) | (minutes >= 3) & (minutes < 380) | (minutes >= 390)]
    made = world(RTH, Timeframe.M1, first, end, keys=keys)
    assert made.load().is_complete
    made.check_complete()
    assert sorted(made.harness.gateway.sizes) == ["1 D", "2 D", "2 D"]
    assert made.harness.store.coverage(made.series).empty == ()
    made.harness.gateway.time += timedelta(days=900)
    assert made.load().requests == 0


@pytest.mark.parametrize(("age_days", "lasts_days"), [(20, 30), (200, 365)])
def test_a_confirmed_empty_session_expires_and_is_requested_again(
    world: MakeWorld, age_days: int, lasts_days: int
) -> None:
    """A session stays confirmed empty for 30 days if it is recent, for a year if it is old."""
    first, end = date(2024, 6, 3), date(2024, 6, 8)
    keys = without(first, end, Timeframe.H1, {date(2024, 6, 5)})
    now = utc(2024, 6, 8) + timedelta(days=age_days)
    made = world(RTH, Timeframe.H1, first, end, keys=keys, now=now)
    assert made.load_until_confirmed().is_complete
    now = made.harness.gateway.time
    made.harness.gateway.time = now + timedelta(days=lasts_days - 1)
    assert made.load().requests == 0
    made.harness.gateway.time = now + timedelta(days=lasts_days + 7)
    assert made.load().requests > 0
    assert made.load_until_confirmed().is_complete
    assert made.load().requests == 0


def test_a_late_bar_is_found_when_the_confirmed_empty_range_expires(
    world: MakeWorld,
) -> None:
    """A session confirmed empty by mistake is filled once it is requested again."""
    first, end = date(2024, 6, 3), date(2024, 6, 8)
    made = world(RTH, Timeframe.H1, first, end, now=utc(2024, 6, 20))
    sessions = calendar_named(RTH)
    whole = made.harness.true_bars(made.series)
    gone = without(first, end, Timeframe.H1, {date(2024, 6, 5)})
    key = made.series.symbol, made.series.timeframe
    made.harness.gateway.true_bars[key] = true_bars_of(gone, Timeframe.H1, sessions)
    made.load()
    made.harness.gateway.true_bars[key] = whole
    made.harness.gateway.time = utc(2024, 8, 20)
    assert made.load().is_complete
    made.check_complete()


def test_an_open_session_is_never_covered_as_empty(world: MakeWorld) -> None:
    """A session without a trade so far stays open, and requests for it end."""
    first, end = date(2024, 6, 3), date(2024, 6, 8)
    keys = without(first, end, Timeframe.H1, {date(2024, 6, 7)})
    made = world(RTH, Timeframe.H1, first, end, keys=keys, now=utc(2024, 6, 7, 18, 30))
    report = made.load()
    assert report.is_complete
    assert report.waiting
    assert report.requests <= 3
    assert made.harness.store.coverage(made.series).empty == ()


@pytest.mark.parametrize("has_head", [True, False])
@pytest.mark.parametrize("timeframe", [Timeframe.H1, Timeframe.M5, Timeframe.D1])
def test_data_that_begin_inside_a_chunk_are_all_found(
    world: MakeWorld, timeframe: Timeframe, has_head: bool
) -> None:
    """A gateway without bars for requests past its oldest bar gets narrower requests."""
    first, end = date(2024, 1, 2), date(2024, 7, 1)
    keys = dense_keys(RTH, timeframe, date(2024, 5, 14), date(2026, 6, 1))
    made = world(RTH, timeframe, first, end, keys=keys)
    gateway = made.harness.gateway
    gateway.nothing_past_oldest = True
    gateway.head_at = utc(2024, 5, 14, 13, 30) if has_head else None
    report = made.load()
    assert report.requests <= (40 if has_head else 140)
    made.check()
    true_bars = made.harness.true_bars(made.series).bars
    assert made.harness.store.rows(made.series) == bars_between(true_bars, *ends_of(made)).num_rows
    report = made.load_until_confirmed()
    assert report.is_complete
    made.check_complete()
    assert made.load().requests == 0


def test_time_before_the_head_timestamp_takes_no_further_request(world: MakeWorld) -> None:
    """Once the gateway has stated where its data begin, the years before are explained."""
    keys = dense_keys(RTH, Timeframe.H1, date(2024, 6, 3), date(2024, 9, 1))
    made = world(RTH, Timeframe.H1, date(2014, 1, 2), date(2024, 7, 1), keys=keys)
    made.harness.gateway.head_at = utc(2024, 6, 3, 13, 30)
    report = made.load()
    assert report.is_complete
    made.check_complete()
    assert made.harness.gateway.head_requests == 1
    assert report.requests <= 7
    assert made.load().requests == 0


def test_a_head_in_mid_bar_loses_no_bar(world: MakeWorld) -> None:
    """The bar in which an instrument first trades begins before that trade."""
    keys = dense_keys(RTH, Timeframe.H1, date(2024, 6, 3), date(2024, 9, 1))
    keys = keys[keys >= micros(utc(2024, 6, 3, 15))]
    made = world(RTH, Timeframe.H1, date(2024, 1, 2), date(2024, 7, 1), keys=keys)
    made.harness.gateway.head_at = utc(2024, 6, 3, 15, 56, 31)
    assert made.load().is_complete
    made.check_complete()


def test_a_contract_without_any_bar_is_not_covered_as_empty(world: MakeWorld) -> None:
    """Without any bar of the contract no response is a statement, and the requests end."""
    made = world(RTH, Timeframe.H1, date(2014, 1, 2), date(2024, 7, 1), keys=np.array([], np.int64))
    del made.harness.gateway.true_bars[made.series.symbol, Timeframe.D1]
    report = made.load()
    assert not report.is_complete
    assert report.requests <= 7
    assert not made.harness.store.coverage(made.series)
    (attempt,) = made.harness.ledger.attempts.of(series_key(made.series))
    assert attempt.kind is AttemptKind.NO_DATA
    assert attempt.next_try_at == made.harness.gateway.time + timedelta(days=1)


def test_a_response_of_earlier_bars_alone_counts_as_empty(world: MakeWorld) -> None:
    """A response of older bars alone states that the session has none."""
    first, end = date(2024, 6, 12), date(2024, 6, 13)
    keys = without(first, end, Timeframe.H1, {date(2024, 6, 12)})
    made = world(RTH, Timeframe.H1, first, end, keys=keys)
    unmutated = made.harness.gateway.unmutated

    def older(request: BarRequest, bars: pa.Table) -> pa.Table:
        return unmutated(BarRequest(request.series, request.ends_at, "3 D"))

    made.harness.gateway.mutate = older
    assert made.load_until_confirmed().is_complete
    assert made.harness.request_count <= 4
    made.check_complete()


def test_all_bars_of_an_instrument_that_has_ended_are_found(world: MakeWorld) -> None:
    """Years without bars after the last bar hide none before it."""
    first, ended, end = date(2020, 1, 2), date(2021, 4, 1), date(2024, 1, 2)
    keys = dense_keys(RTH, Timeframe.D1, first, ended)
    made = world(RTH, Timeframe.D1, first, end, keys=keys)
    made.harness.gateway.head_at = utc(2020, 1, 2, 14, 30)
    report = made.load()
    assert report.requests <= 30
    assert made.harness.store.rows(made.series) == 314
    assert made.load_until_confirmed().is_complete
    made.check_complete()
    assert made.load().requests == 0


def test_a_confirmed_empty_range_expires_by_the_clock_of_this_machine() -> None:
    """The gaps at the end of a load are judged by the clock that planned the requests."""
    calendar = calendar_named(RTH)
    day = interval_between(calendar, Timeframe.H1, date(2024, 6, 12), date(2024, 6, 13))
    proof = Emptiness(day, utc(2024, 6, 20))
    series, wanted = series_of(stock(), Timeframe.H1), IntervalSet([day])
    state = SeriesState(series, wanted, Coverage(empty=(proof,)), calendar=calendar)
    here, behind = utc(2024, 7, 21), utc(2024, 7, 19)
    need = state.need(behind, here)
    assert need.gaps()
    assert state.left(need, here) == need.gaps()


@pytest.mark.parametrize("timeframe", [Timeframe.M1, Timeframe.M5, Timeframe.H1])
def test_bars_that_lag_behind_a_close_are_not_empty(world: MakeWorld, timeframe: Timeframe) -> None:
    """The last bars of a session that a gateway returns twenty minutes late are waited for."""
    first, end = date(2024, 6, 3), date(2024, 6, 5)
    close = utc(2024, 6, 4, 20)
    made = world(RTH, timeframe, first, end, now=close + timedelta(minutes=2))
    lag = timedelta(minutes=20)

    def late(request: BarRequest, bars: pa.Table) -> pa.Table:
        known = micros(made.harness.gateway.time - lag) - timeframe.seconds * 1_000_000
        return bars.filter(pa.array([key <= known for key in keys_of(bars)], pa.bool_()))

    made.harness.gateway.mutate = late
    report = made.load()
    assert report.is_complete
    assert report.waiting.bounds is not None
    assert report.waiting.bounds.end == close
    made.check()
    made.harness.gateway.time = close + timedelta(minutes=31)
    assert not made.load().waiting
    made.check_complete()


FIRST, END = date(2024, 6, 4), date(2024, 6, 6)


def short_then_empty(made: World, *, bars: int) -> None:
    """Return too few bars at first, then none, then the true ones."""
    request_count = 0

    def mutate(request: BarRequest, found: pa.Table) -> pa.Table | NoData:
        nonlocal request_count
        request_count += 1
        if request_count == 1:
            return found.slice(0, bars)
        return NoData(request, NO_DATA_TEXT) if request_count == 2 else found

    made.harness.gateway.mutate = mutate


@pytest.mark.parametrize("bars", [1, 200, 380])
def test_a_range_returned_short_and_then_empty_is_loaded(world: MakeWorld, bars: int) -> None:
    """Every minute is stored in the end, and no load reports complete before."""
    made = world(RTH, Timeframe.M1, FIRST, END)
    short_then_empty(made, bars=bars)
    report = made.load()
    if report.is_complete:
        made.check_complete()
    assert made.load_until_confirmed().is_complete
    made.check_complete()


@pytest.mark.parametrize("bars", [1, 200, 380])
def test_a_short_range_of_the_newest_session_is_loaded_too(world: MakeWorld, bars: int) -> None:
    """No later session has bars on the other side of the range yet."""
    made = world(RTH, Timeframe.M1, date(2024, 6, 5), END, now=utc(2024, 6, 5, 21))
    short_then_empty(made, bars=bars)
    report = made.load()
    assert exit_code_of([report]) is ExitCode.INCOMPLETE
    made.harness.gateway.time += timedelta(minutes=16)
    assert made.load_until_confirmed().is_complete
    made.check_complete()


def test_empty_responses_for_some_hours_hide_no_half_day(world: MakeWorld) -> None:
    """After a tail of the morning the gateway returns nothing of today for some hours."""
    made = world(RTH, Timeframe.M1, FIRST, END, now=utc(2024, 6, 5, 16))
    made.load()
    gateway = made.harness.gateway

    def mutate(request: BarRequest, found: pa.Table) -> pa.Table | NoData:
        is_today = request.ends_at is None or request.ends_at > utc(2024, 6, 5, 14)
        return NoData(request, NO_DATA_TEXT) if is_today else found

    gateway.mutate = mutate
    for minutes in (300, 16, 16, 16):
        gateway.time += timedelta(minutes=minutes)
        assert not made.load().is_complete
    gateway.mutate = None
    gateway.time += timedelta(hours=10)
    assert made.load_until_confirmed().is_complete
    made.check_complete()


def test_a_response_cut_short_does_not_show_where_data_begin(world: MakeWorld) -> None:
    """A response that began late proves nothing once older bars have been returned."""
    made = world(RTH, Timeframe.H1, FIRST, date(2024, 6, 15), now=utc(2024, 6, 20))
    gateway = made.harness.gateway
    key = made.series.symbol, Timeframe.D1
    gateway.true_bars.pop(key)
    gateway.mutate = lambda _, found: found.slice(found.num_rows // 2)
    made.load()
    gateway.mutate = None
    assert made.load_until_confirmed().is_complete
    made.check_complete()
