"""Covered ranges are requested again by a refresh, and sparse sessions without one."""

import asyncio
from collections.abc import Callable
from dataclasses import replace
from datetime import date, datetime, timedelta

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from ktrdr_pipelines.cli.load_report import exit_code_of
from ktrdr_pipelines.domain.bars import bars_between, micros
from ktrdr_pipelines.domain.calendars.registry import Calendars, calendar_named
from ktrdr_pipelines.domain.coverage import ProofKind
from ktrdr_pipelines.domain.instruments import Series
from ktrdr_pipelines.domain.intervals import Interval, IntervalSet
from ktrdr_pipelines.domain.planning.jobs import Mode, RequestedBy
from ktrdr_pipelines.domain.planning.reports import SeriesReport
from ktrdr_pipelines.domain.planning.responses import BarRequest, NoData
from ktrdr_pipelines.domain.timeframes import Timeframe
from ktrdr_pipelines.errors import ExitCode, GatewayError, RequestRejectedError
from ktrdr_pipelines.gaps.index import GapIndex
from ktrdr_pipelines.store.ledger.ledger import series_key
from ktrdr_pipelines.store.ledger.marks import REFRESH_KEPT_DAYS
from ktrdr_pipelines.sync.runner import Job
from tests.support.fake_gateway import dense_keys, true_bars_of, utc
from tests.support.loading import NotedTexts, World

MakeWorld = Callable[..., World]
RTH = "XNYS.RTH"
JUNE = date(2024, 6, 3), date(2024, 6, 29)
SPRING = date(2024, 3, 4), date(2024, 6, 1)
NOTHING = IntervalSet()


def refresh(made: World, interval: Interval | None = None) -> SeriesReport:
    """Refresh an interval."""
    wanted = IntervalSet([interval or made.wanted])
    return made.harness.run(Job(made.series, wanted=wanted, refresh=True))[0]


def restate(made: World, first: date, end: date) -> None:
    """Let the gateway return other volumes for some dates from now on."""
    key = made.series.symbol, made.series.timeframe
    true_bars = made.harness.gateway.true_bars[key]
    days = true_bars.bars["session_date"].to_numpy().astype("datetime64[D]")
    changed = (days >= np.datetime64(first)) & (days < np.datetime64(end))
    volume = np.where(changed, 7.0, true_bars.bars["volume"].to_numpy())
    place = true_bars.bars.schema.get_field_index("volume")
    bars = true_bars.bars.set_column(place, true_bars.bars.schema.field("volume"), pa.array(volume))
    made.harness.gateway.true_bars[key] = replace(true_bars, bars=bars)


def remove_day(made: World, day: date) -> int:
    """Remove a date from the gateway's bars, and return the number of bars removed."""
    key = made.series.symbol, made.series.timeframe
    true_bars = made.harness.gateway.true_bars[key]
    kept = true_bars.bars["session_date"].to_numpy().astype("datetime64[D]") != np.datetime64(day)
    made.harness.gateway.true_bars[key] = replace(
        true_bars,
        bars=true_bars.bars.filter(pa.array(kept)),
        opens=true_bars.opens[kept],
        closes=true_bars.closes[kept],
    )
    return int((~kept).sum())


@pytest.mark.parametrize("timeframe", [Timeframe.M1, Timeframe.H1, Timeframe.D1, Timeframe.W1])
def test_a_refresh_requests_each_chunk_once_and_keeps_what_changed(
    world: MakeWorld, timeframe: Timeframe
) -> None:
    """The requests equal those of the first load; values before a change become revisions."""
    made = world(RTH, timeframe, *JUNE)
    first = made.load()
    before = list(made.harness.gateway.requests)
    restate(made, date(2024, 6, 10), date(2024, 6, 17))
    coverage = made.harness.store.coverage(made.series)
    report = refresh(made)
    again = made.harness.gateway.requests[len(before) :]
    assert {(one.ends_at, one.duration) for one in again} == {
        (one.ends_at, one.duration) for one in before
    }
    assert len(again) == len(before) == first.requests
    assert report.is_complete
    assert report.added == 0
    revisions = made.harness.ledger.revisions.of(series_key(made.series))
    assert len(revisions) == report.revised > 0
    assert {one.volume for one in revisions} == {100.0}
    assert made.harness.store.coverage(made.series) == coverage
    made.check_complete()


def test_a_refresh_of_a_part_requests_that_part(world: MakeWorld) -> None:
    """Only the sessions of the named interval are requested."""
    made = world(RTH, Timeframe.M1, *JUNE)
    made.load()
    request_count = made.harness.request_count
    report = refresh(made, Interval(utc(2024, 6, 11, 4), utc(2024, 6, 14, 4)))
    assert report.requests == 3
    assert [one.ends_at.day for one in made.harness.gateway.requests[request_count:]] == [
        14,
        13,
        12,
    ]


def test_a_refresh_fills_what_was_missing_too(world: MakeWorld) -> None:
    """Ranges that were never covered are requested once, with the rest."""
    made = world(RTH, Timeframe.M1, *JUNE)
    made.harness.load(made.series, Interval(made.wanted.start, utc(2024, 6, 12, 4)))
    assert refresh(made).is_complete
    made.check_complete()


def test_a_failed_refresh_keeps_coverage_and_bars(world: MakeWorld) -> None:
    """The failed range is reported as not refreshed, and is no gap."""
    made = world(RTH, Timeframe.M1, *JUNE)
    made.load()
    coverage, bars = made.harness.store.coverage(made.series), made.harness.store.read(made.series)

    def fail(request: BarRequest, bars: pa.Table) -> pa.Table | GatewayError:
        ends_at = utc(2024, 6, 13, 13, 30)
        return RequestRejectedError("bars") if request.ends_at == ends_at else bars

    made.harness.gateway.mutate = fail
    report = refresh(made)
    assert not report.is_complete
    assert not report.unexplained
    assert report.not_refreshed == IntervalSet(
        [Interval(utc(2024, 6, 12, 13, 30), utc(2024, 6, 12, 20))]
    )
    assert "not all refreshed" in report.summary
    assert made.harness.store.coverage(made.series) == coverage
    assert made.harness.store.read(made.series).equals(bars)
    made.harness.gateway.mutate = None
    assert made.load().requests == 0


@pytest.mark.parametrize("timeframe", [Timeframe.M1, Timeframe.H1])
def test_bars_that_the_gateway_no_longer_returns_are_kept(
    world: MakeWorld, timeframe: Timeframe
) -> None:
    """They are reported as not refreshed."""
    made = world(RTH, timeframe, *JUNE)
    made.load()
    bars = made.harness.store.read(made.series)
    assert remove_day(made, date(2024, 6, 12)) > 0
    report = refresh(made)
    assert not report.unexplained
    assert [part.start.date() for part in report.not_refreshed] == [date(2024, 6, 12)]
    assert made.harness.store.read(made.series).equals(bars)
    assert made.harness.store.coverage(made.series).empty == ()


def stop_a_refresh(made: World) -> None:
    """Restate the market, and cancel a refresh of it at its twelfth request."""
    request_count = made.harness.request_count
    restate(made, *JUNE)

    async def stop(_: BarRequest) -> None:
        if made.harness.request_count == request_count + 12:
            await made.harness.cancel()

    made.harness.gateway.before_response = stop
    with pytest.raises(asyncio.CancelledError):
        refresh(made)
    made.harness.gateway.before_response = None


def test_a_stop_in_the_middle_of_a_refresh_loses_nothing(world: MakeWorld) -> None:
    """Bars returned before the stop are stored; everything else is unchanged."""
    made = world(RTH, Timeframe.M1, *JUNE)
    made.load()
    coverage = made.harness.store.coverage(made.series)
    stop_a_refresh(made)
    assert made.harness.store.coverage(made.series) == coverage
    volumes = made.harness.store.read(made.series, made.wanted)["volume"].to_numpy()
    assert 390 * 5 <= int((volumes == 7.0).sum()) < 390 * 19
    assert refresh(made).is_complete
    made.check_complete()


def test_a_stopped_refresh_is_continued_and_a_finished_one_repeated(
    world: MakeWorld,
) -> None:
    """Chunks saved before the stop are not requested again; after the end all of them are."""
    made = world(RTH, Timeframe.M1, *JUNE)
    made.load()
    stop_a_refresh(made)
    volumes = made.harness.store.read(made.series, made.wanted)["volume"].to_numpy()
    rest = int((volumes != 7.0).sum()) // 390
    assert 0 < rest < 19
    assert refresh(made).requests == rest
    made.check_complete()
    assert refresh(made).requests == 19


def test_a_refresh_that_failed_in_part_requests_that_part_next(world: MakeWorld) -> None:
    """Only the part that failed is requested again, unless days have passed since."""
    made = world(RTH, Timeframe.M1, *JUNE)
    made.load()

    def fail(request: BarRequest, bars: pa.Table) -> pa.Table | GatewayError:
        ends_at = utc(2024, 6, 13, 13, 30)
        return RequestRejectedError("bars") if request.ends_at == ends_at else bars

    made.harness.gateway.mutate = fail
    assert len(refresh(made).not_refreshed) == 1
    assert len(refresh(made).not_refreshed) == 1
    assert made.harness.request_count == 19 + 19 + 1
    made.harness.gateway.time += timedelta(days=REFRESH_KEPT_DAYS, minutes=1)
    made.harness.gateway.mutate = None
    assert refresh(made).requests == 1 + 19  # the first: for the price basis, on another day


def test_a_load_after_an_unfinished_refresh_requests_nothing(world: MakeWorld) -> None:
    """Ranges that are not yet refreshed stay covered."""
    made = world(RTH, Timeframe.M1, *JUNE)
    made.load()
    made.harness.gateway.mutate = lambda *_: RequestRejectedError("bars")
    assert not refresh(made).is_complete
    assert made.load().requests == 0


def test_a_load_and_a_refresh_in_one_run_both_end(world: MakeWorld) -> None:
    """A refresh also requests what another run has saved."""
    made = world(RTH, Timeframe.M1, *JUNE)
    wanted = IntervalSet([made.wanted])
    first, second = made.harness.run(
        Job(made.series, wanted=wanted), Job(made.series, wanted=wanted, refresh=True)
    )
    assert (first.requests, second.requests) == (19, 19)


# --- sparse sessions ------------------------------------------------------------------------------


def cut_short(made: World, day: date, minutes: int, *, times: int = 1000) -> None:
    """Omit the end of a session from so many responses that have it."""
    opens = calendar_named(RTH).sessions(day, day + timedelta(days=1))[0].opens_at
    low, high = micros(opens) + minutes * 60_000_000, micros(opens) + 390 * 60_000_000

    left = times

    def leave_out(_: BarRequest, bars: pa.Table) -> pa.Table:
        nonlocal left
        keys = bars["ts"].cast(pa.int64()).to_numpy()
        is_cut = (keys >= low) & (keys < high)
        left -= int(is_cut.any())
        return bars.filter(pa.array(~is_cut)) if left >= 0 else bars

    made.harness.gateway.mutate = leave_out


def omit_session(made: World, day: date, *, times: int) -> None:
    """Omit all of a session from so many responses that have it."""
    left = times

    def leave_out(_: BarRequest, bars: pa.Table) -> pa.Table:
        nonlocal left
        is_cut = pc.equal(bars["session_date"], pa.scalar(day, pa.date32()))
        left -= int(pc.any(is_cut).as_py() or False)
        return bars.filter(pc.invert(is_cut)) if left >= 0 else bars

    made.harness.gateway.mutate = leave_out


def sensor(made: World) -> SeriesReport:
    """Fill gaps as a sensor does."""
    wanted = IntervalSet([made.wanted])
    return made.harness.run(Job(made.series, wanted=wanted, requested_by=RequestedBy.SENSOR))[0]


def test_a_sparse_session_is_requested_once_more_and_completed(world: MakeWorld) -> None:
    """A session with far fewer bars than others is requested again a quarter of an hour later."""
    made = world(RTH, Timeframe.M1, *JUNE)
    cut_short(made, date(2024, 6, 13), 100, times=2)
    report = made.load()
    assert (report.requests, report.added) == (20, 19 * 390 - 290)
    assert exit_code_of([report]) is ExitCode.INCOMPLETE
    made.harness.gateway.time += timedelta(minutes=14)
    assert made.load().requests == sensor(made).requests == 0
    made.harness.gateway.time += timedelta(minutes=2)
    report = sensor(made)
    assert (report.requests, report.added) == (1, 290)
    assert exit_code_of([report]) is ExitCode.DONE
    made.check_complete()
    assert sensor(made).requests == 0


@pytest.mark.parametrize("timeframe", [Timeframe.M1, Timeframe.D1])
def test_a_session_without_bars_among_full_ones_is_requested_once_more(
    world: MakeWorld, timeframe: Timeframe
) -> None:
    """One empty session among full ones is contradicted, and requested again on another day."""
    made = world(RTH, timeframe, *SPRING)
    omit_session(made, date(2024, 4, 11), times=3)
    for _ in range(3):
        report = made.load()
        made.harness.gateway.time += timedelta(days=1, minutes=1)
    assert exit_code_of([report]) is ExitCode.DONE
    made.check_complete()
    assert sensor(made).requests == 0


def test_a_session_that_stays_empty_is_confirmed(world: MakeWorld) -> None:
    """Among full sessions that takes three days, and the range is disputed until it expires."""
    made = world(RTH, Timeframe.M1, *JUNE)
    cut_short(made, date(2024, 6, 13), 0)
    for day in range(2):
        report = made.load()
        assert [part.start.date() for part in report.unexplained] == [date(2024, 6, 13)], day
        assert report.confirmed_at is not None
        assert sensor(made).requests == 0
        made.harness.gateway.time = report.confirmed_at + timedelta(minutes=1)
    assert made.load().is_complete
    (proof,) = made.harness.store.coverage(made.series).empty
    assert proof.kind is ProofKind.DISPUTED
    assert sensor(made).requests == 0


def remove_bars(made: World, since: datetime, until: datetime) -> None:
    """Remove a range from the gateway's bars, daily ones too."""
    instrument = made.series.instrument
    for timeframe in (made.series.timeframe, Timeframe.D1):
        key = instrument.symbol, timeframe
        true_bars = made.harness.gateway.true_bars[key]
        kept = (true_bars.closes <= micros(since)) | (true_bars.opens >= micros(until))
        made.harness.gateway.true_bars[key] = replace(
            true_bars,
            bars=true_bars.bars.filter(pa.array(kept)),
            opens=true_bars.opens[kept],
            closes=true_bars.closes[kept],
        )


@pytest.mark.parametrize(
    ("since", "until"),
    [
        pytest.param(utc(2024, 6, 13, 13), utc(2024, 6, 13, 22), id="a session"),
        pytest.param(utc(2024, 6, 11, 13), utc(2024, 6, 13, 17), id="sessions and a part"),
        pytest.param(utc(2024, 6, 3, 13), utc(2024, 6, 3, 17), id="where the range begins"),
    ],
)
def test_a_refresh_of_confirmed_empty_ranges_is_complete(
    world: MakeWorld, since: datetime, until: datetime
) -> None:
    """Ranges that are confirmed empty and return no bars again are refreshed, wherever they lie."""
    made = world(RTH, Timeframe.M1, *JUNE)
    remove_bars(made, since, until)
    made.load_until_confirmed()
    made.harness.gateway.time += timedelta(minutes=16)
    assert made.load().is_complete  # a sparse session was requested once more
    made.harness.gateway.time += timedelta(days=2)
    coverage = made.harness.store.coverage(made.series)
    report = refresh(made)
    assert report.not_refreshed == NOTHING
    assert report.is_complete
    assert made.harness.store.coverage(made.series).covered(made.harness.gateway.time) == (
        coverage.covered(made.harness.gateway.time)
    )
    assert made.load().requests == 0
    made.check_complete()


@pytest.mark.parametrize("timeframe", [Timeframe.M1, Timeframe.M5, Timeframe.H1])
def test_a_sparse_session_with_an_empty_beginning_is_confirmed(
    world: MakeWorld, timeframe: Timeframe
) -> None:
    """A second response covers it though no bars precede its beginning.

    The first response had bars on both sides where it was wide.
    """
    made = world(RTH, timeframe, *JUNE)
    remove_bars(made, utc(2024, 6, 11, 13), utc(2024, 6, 13, 17))
    report = made.load_until_confirmed()
    for _ in range(2):
        made.harness.gateway.time += timedelta(minutes=16)
        report = made.load()
    assert report.is_complete, report.summary
    assert sensor(made).requests == 0
    made.check_complete()


def test_loads_in_between_do_not_change_the_time_of_the_second_request(world: MakeWorld) -> None:
    """A tail and an early load leave the time of a sparse session as it is."""
    made = world(RTH, Timeframe.M1, *JUNE)
    cut_short(made, date(2024, 6, 13), 100, times=9)
    made.load()
    for minutes, mode in ((3, Mode.TAIL), (3, Mode.FULL), (8, Mode.TAIL)):
        made.harness.gateway.time += timedelta(minutes=minutes)
        made.harness.run(Job(made.series, mode, wanted=IntervalSet([made.wanted])))
        assert sensor(made).requests == 0
    made.harness.gateway.time += timedelta(minutes=2)
    assert sensor(made).requests > 0
    assert sensor(made).requests == 0


def test_a_sparse_session_returned_unchanged_is_confirmed(world: MakeWorld) -> None:
    """A session that returns the same bars twice is confirmed, and never requested again."""
    made = world(RTH, Timeframe.M1, *JUNE)
    cut_short(made, date(2024, 6, 13), 100)
    assert made.load().sparse
    made.harness.gateway.time += timedelta(minutes=16)
    report = made.load()
    assert report.is_complete
    assert not report.sparse
    assert made.harness.ledger.confirmed.of(series_key(made.series)) == {date(2024, 6, 13): 100}
    for mode in Mode:
        assert (
            made.harness.run(Job(made.series, mode, wanted=IntervalSet([made.wanted])))[0].requests
            == 0
        )


def test_a_sparse_session_that_fails_is_deferred(world: MakeWorld) -> None:
    """The second request fails: the bars stay covered, and the next attempt is deferred."""
    made = world(RTH, Timeframe.M1, *JUNE)
    cut_short(made, date(2024, 6, 13), 100)
    leave_out, request_count = made.harness.gateway.mutate, 0
    assert leave_out is not None

    def then_fail(request: BarRequest, bars: pa.Table) -> pa.Table | NoData | GatewayError:
        nonlocal request_count
        request_count += 1
        return leave_out(request, bars) if request_count <= 20 else RequestRejectedError("bars")

    made.harness.gateway.mutate = then_fail
    noted = NotedTexts()
    (report,) = made.harness.run_with(noted, made.series, made.wanted)
    assert "far fewer bars than in the sessions around: 2024-06-13 (100 bars)" in noted.texts[-1]
    assert (report.requests, report.added, report.unexplained) == (20, 19 * 390 - 290, NOTHING)
    assert [part.start.date() for part in report.sparse] == [date(2024, 6, 13)]
    assert exit_code_of([report]) is ExitCode.INCOMPLETE
    assert sensor(made).requests == 0
    made.harness.gateway.time += timedelta(minutes=16)
    assert exit_code_of([sensor(made)]) is ExitCode.INCOMPLETE
    assert sensor(made).requests == 0
    made.harness.gateway.time += timedelta(minutes=6)
    made.harness.gateway.mutate = None
    assert sensor(made).added == 290
    made.check_complete()


def test_the_last_session_of_a_contract_is_not_sparse(world: MakeWorld) -> None:
    """A future that expires in the morning is complete with the bars of that morning.

    No later bars exist, so two responses must confirm it.
    """
    made = world(RTH, Timeframe.M1, *JUNE)
    last = date(2024, 6, 28)
    instrument = replace(made.series.instrument, last_trade_date=last, end=date(2024, 6, 29))
    made = replace(made, series=Series(instrument, Timeframe.M1))
    cut_short(made, last, 100)
    assert made.load_until_confirmed().is_complete
    assert sensor(made).requests == 0
    index = GapIndex(made.harness.store, Calendars(), made.harness.gateway.gateway)
    (found,) = index.series_gaps([made.series], made.harness.gateway.time)
    assert not found.missing.clip(made.wanted)


def test_one_response_does_not_end_a_contracts_last_session(world: MakeWorld) -> None:
    """The morning is held; one response of older bars alone does not prove that it was all."""
    made = world(RTH, Timeframe.M1, *JUNE, now=utc(2024, 6, 28, 15))
    last = date(2024, 6, 28)
    instrument = replace(made.series.instrument, last_trade_date=last, end=date(2024, 6, 29))
    made = replace(made, series=Series(instrument, Timeframe.M1))
    made.load()
    held = made.harness.store.rows(made.series)
    made.harness.gateway.time = utc(2024, 6, 28, 22)
    morning = utc(2024, 6, 28, 15)
    request_count = made.harness.request_count

    def mutate(_: BarRequest, bars: pa.Table) -> pa.Table | GatewayError:
        if made.harness.request_count > request_count + 1:
            return RequestRejectedError("bars", reason="321")
        return bars_between(bars, utc(2020, 1, 1), morning)

    made.harness.gateway.mutate = mutate
    report = made.load()
    assert made.harness.store.rows(made.series) >= held
    assert not report.is_complete
    made.harness.gateway.mutate = None
    made.harness.gateway.time += timedelta(minutes=16)
    assert made.load_until_confirmed().is_complete
    made.check_complete()


def test_a_tail_requests_no_sparse_session(world: MakeWorld) -> None:
    """A tail only requests new bars."""
    made = world(RTH, Timeframe.M1, *JUNE)
    cut_short(made, date(2024, 6, 13), 100)
    made.load()
    wanted = IntervalSet([made.wanted])
    assert made.harness.run(Job(made.series, Mode.TAIL, wanted=wanted))[0].requests == 0


def test_a_thin_market_has_no_sparse_sessions(world: MakeWorld) -> None:
    """Numbers of bars that vary by session make no session sparse."""
    keys = dense_keys(RTH, Timeframe.M1, date(2024, 4, 1), date(2024, 7, 20))
    keys = keys[np.random.default_rng(5).random(len(keys)) < 0.2]
    made = world(RTH, Timeframe.M1, *JUNE, keys=keys)
    assert made.load().is_complete
    assert sensor(made).requests == 0
    made.check_complete()
    true_bars = true_bars_of(keys, Timeframe.M1, calendar_named(RTH)).bars
    ends = made.wanted.start, made.wanted.end
    assert (
        made.harness.store.rows(made.series, made.wanted) == bars_between(true_bars, *ends).num_rows
    )
