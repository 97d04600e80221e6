"""The gap index: what every series holds and lacks, from files and ledger alone."""

from collections.abc import Callable
from dataclasses import replace
from datetime import date, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

from ktrdr_pipelines.app.workspace import Workspace
from ktrdr_pipelines.domain.bars import micros
from ktrdr_pipelines.domain.calendars.registry import Calendars, calendar_named
from ktrdr_pipelines.domain.calendars.sessions import interval_between
from ktrdr_pipelines.domain.coverage import Coverage, Emptiness
from ktrdr_pipelines.domain.instruments import Origin, Series, identity_of
from ktrdr_pipelines.domain.intervals import Interval, IntervalSet
from ktrdr_pipelines.domain.planning.empty_ranges import Statement, StatementKind
from ktrdr_pipelines.domain.planning.gaps import GapReason
from ktrdr_pipelines.domain.timeframes import Timeframe
from ktrdr_pipelines.gaps.index import GapIndex, Memory, SeriesGaps
from ktrdr_pipelines.settings import Settings
from ktrdr_pipelines.store.bars.bar_store import BarStore
from ktrdr_pipelines.store.layout import StoreLayout, create_store
from ktrdr_pipelines.store.ledger.attempts import AttemptKind
from ktrdr_pipelines.store.ledger.ledger import Ledger, series_key
from tests.support.fake_gateway import bars_at, dense_keys, fx, stock, utc

GATEWAY = "fake:1"
NOW = utc(2024, 3, 1, 12)
START = date(2024, 1, 2)


@pytest.fixture
def layout(tmp_path: Path) -> StoreLayout:
    """Give a new store."""
    return create_store(tmp_path / "data")


@pytest.fixture
def store(layout: StoreLayout) -> BarStore:
    """Give the bars of the new store."""
    return BarStore(layout, Ledger(layout.ledger))


@pytest.fixture
def series_gaps(store: BarStore) -> Callable[..., SeriesGaps]:
    """Look at one series, with one memory for the whole test."""
    index = GapIndex(store, Calendars(), GATEWAY)

    def one(series: Series, now: datetime = NOW) -> SeriesGaps:
        (found,) = index.series_gaps([series], now)
        return found

    return one


def _series(timeframe: Timeframe, *, is_fx: bool = False) -> Series:
    return Series(replace(fx() if is_fx else stock(), start=START), timeframe)


def _fill(
    store: BarStore,
    series: Series,
    first: date = START,
    end: date = date(2024, 3, 1),
    *,
    without: tuple[date, ...] = (),
) -> None:
    """Save complete bars of some session dates, covered without a hole but for some dates."""
    calendar = calendar_named(series.instrument.calendar)
    keys = dense_keys(calendar.key, series.timeframe, first, end)
    covered = IntervalSet([interval_between(calendar, series.timeframe, first, end)])
    for day in without:
        left_out = interval_between(calendar, series.timeframe, day, day + timedelta(days=1))
        covered -= IntervalSet([left_out])
        keys = keys[(keys < micros(left_out.start)) | (keys >= micros(left_out.end))]
    bars = bars_at(keys, calendar, daily=not series.timeframe.is_intraday)
    store.save(
        series, identity_of(series, contract_id=1, origin=Origin.IB), bars, Coverage(covered)
    )


@pytest.mark.parametrize("timeframe", Timeframe)
@pytest.mark.parametrize("is_fx", [False, True])
def test_a_complete_store_has_no_gap(
    store: BarStore, series_gaps: Callable[..., SeriesGaps], timeframe: Timeframe, is_fx: bool
) -> None:
    """Nights, weekends and holidays are no gaps in any timeframe."""
    series = _series(timeframe, is_fx=is_fx)
    _fill(store, series)
    found = series_gaps(series, utc(2024, 2, 29, 22, 50))
    assert found.gaps == ()
    assert found.rows == store.rows(series) > 0
    assert found.error is None


def test_a_series_without_files_is_one_gap(series_gaps: Callable[..., SeriesGaps]) -> None:
    """From the start in the universe to the last session that has closed."""
    found = series_gaps(_series(Timeframe.D1))
    (gap,) = found.gaps
    assert gap.interval == Interval(utc(2024, 1, 2), utc(2024, 3, 1))
    assert (gap.sessions, gap.bars, gap.reason) == (41, 41, GapReason.MISSING)
    assert (found.rows, found.first, found.covered_until) == (0, None, None)


def test_missing_days_are_named_exactly(
    store: BarStore, series_gaps: Callable[..., SeriesGaps]
) -> None:
    """Two days apart are two gaps, the rest is whole."""
    series = _series(Timeframe.H1)
    _fill(store, series, without=(date(2024, 1, 17), date(2024, 2, 5)))
    gaps = series_gaps(series).gaps
    assert [gap.interval.start.date() for gap in gaps] == [date(2024, 1, 17), date(2024, 2, 5)]
    assert [(gap.sessions, gap.bars) for gap in gaps] == [(1, 7), (1, 7)]


def test_a_second_look_sees_what_was_saved_since(
    store: BarStore, series_gaps: Callable[..., SeriesGaps]
) -> None:
    """What is kept in mind counts only while the files are as they were."""
    series = _series(Timeframe.M1)
    _fill(store, series, end=date(2024, 2, 1))
    assert series_gaps(series).gaps[0].interval.start == utc(2024, 2, 1, 14, 30)
    _fill(store, series)
    assert series_gaps(series).gaps == ()


def test_a_session_that_closes_becomes_a_gap(
    store: BarStore, series_gaps: Callable[..., SeriesGaps]
) -> None:
    """Its bars are waited for while it is open and half an hour longer; then they are missing."""
    series = _series(Timeframe.H1)
    _fill(store, series)
    at_noon = series_gaps(series, utc(2024, 3, 1, 17))
    assert at_noon.gaps == ()
    assert list(at_noon.waiting) == [Interval(utc(2024, 3, 1, 14, 30), utc(2024, 3, 1, 16, 59, 55))]
    settling = series_gaps(series, utc(2024, 3, 1, 21, 29))
    assert settling.gaps == ()
    assert list(settling.waiting) == [Interval(utc(2024, 3, 1, 14, 30), utc(2024, 3, 1, 21))]
    closed = series_gaps(series, utc(2024, 3, 1, 21, 30))
    assert [gap.bars for gap in closed.gaps] == [7]
    assert not closed.waiting


def test_an_attempt_is_the_reason_of_a_gap(
    store: BarStore, series_gaps: Callable[..., SeriesGaps]
) -> None:
    """Each kind of attempt has its word, its text and its next try; noticed at the next look."""
    series = _series(Timeframe.D1)
    _fill(store, series, end=date(2024, 2, 1))
    assert [gap.reason for gap in series_gaps(series).gaps] == [GapReason.MISSING]
    due = NOW + timedelta(minutes=5)
    words = {
        AttemptKind.ERROR: GapReason.FAILED,
        AttemptKind.PROBED: GapReason.UNCONFIRMED,
        AttemptKind.CONTRADICTED: GapReason.CONTRADICTED,
        AttemptKind.SPARSE: GapReason.SPARSE,
        AttemptKind.NO_DATA: GapReason.NO_DATA,
        AttemptKind.BLOCKED: GapReason.BLOCKED,
    }
    for number, (kind, reason) in enumerate(words.items()):
        store.ledger.attempts.record(
            *(series_key(series), Interval(utc(2024, 2, 1), utc(2024, 3, 2)), kind),
            error=f"text {number}",
            code=None,
            next_try_at=due,
            at=NOW + timedelta(seconds=number),
        )
        (gap,) = series_gaps(series).gaps
        assert (gap.reason, gap.detail, gap.next_try_at) == (reason, f"text {number}", due)
    assert series_gaps(series).is_blocked


def test_a_proof_of_emptiness_explains_until_it_expires(
    store: BarStore, series_gaps: Callable[..., SeriesGaps]
) -> None:
    """What was proved empty is covered, and a gap with that reason when the proof is too old."""
    series = _series(Timeframe.D1)
    _fill(store, series, end=date(2024, 2, 1))
    proved = NOW - timedelta(days=1)
    empty = Emptiness(Interval(utc(2024, 2, 1), utc(2024, 3, 1)), proved)
    identity = identity_of(series, contract_id=1, origin=Origin.IB)
    store.save(
        series,
        identity,
        bars_at([], calendar_named("XNYS.RTH"), daily=True),
        Coverage(empty=(empty,)),
    )
    assert series_gaps(series).gaps == ()
    later = series_gaps(series, proved + timedelta(days=31))
    assert later.gaps[0].reason is GapReason.EXPIRED
    assert "proved empty at 2024-02-29" in later.gaps[0].detail


def test_the_oldest_data_of_the_gateway_explain_what_lies_before(
    store: BarStore, series_gaps: Callable[..., SeriesGaps]
) -> None:
    """A head timestamp explains nothing before a response begins at it, or if an older bar is held.

    The older bar may be of any timeframe of the contract.
    """
    series = _series(Timeframe.D1)
    _fill(store, series, first=date(2024, 2, 1), without=(date(2024, 2, 7),))
    assert len(series_gaps(series).gaps) == 2

    def head_at(at: datetime) -> list[date]:
        store.ledger.heads.record(1, "TRADES", GATEWAY, head=at, asked_at=NOW)
        return [gap.interval.start.date() for gap in series_gaps(series).gaps]

    def begins_at(at: datetime) -> None:
        asked = Interval(utc(2024, 1, 2, 14, 30), at)
        said = Statement(asked, StatementKind.BEGINS, "1d", NOW, f"request {at}")
        store.ledger.statements.record("AAPL", GATEWAY, [said], NOW)

    everything = [date(2024, 1, 2), date(2024, 2, 7)]
    for at in (utc(2024, 1, 16, 14, 30), utc(2024, 2, 1, 14, 30), utc(2024, 2, 28, 14, 30)):
        assert head_at(at) == everything
        begins_at(at)
    assert head_at(utc(2024, 2, 28, 14, 30)) == everything
    assert head_at(utc(2024, 1, 16, 14, 30)) == [date(2024, 1, 16), date(2024, 2, 7)]
    assert head_at(utc(2024, 2, 1, 14, 30)) == [date(2024, 2, 7)]
    _fill(store, _series(Timeframe.H1), first=date(2024, 1, 29), end=date(2024, 1, 30))
    assert head_at(utc(2024, 2, 1, 14, 30)) == everything


def _with_sparse_session(store: BarStore) -> Series:
    """Give a series with bars to March, of which the session of 14 February broke off."""
    series, calendar = _series(Timeframe.M5), calendar_named("XNYS.RTH")
    _fill(store, series, end=date(2024, 2, 1))
    keys = dense_keys("XNYS.RTH", Timeframe.M5, date(2024, 2, 1), date(2024, 3, 1))
    start = micros(utc(2024, 2, 14, 16))
    keys = keys[(keys < start) | (keys >= start + 20 * 3_600_000_000)]
    covered = interval_between(calendar, Timeframe.M5, date(2024, 2, 1), date(2024, 3, 1))
    identity = identity_of(series, contract_id=1, origin=Origin.IB)
    store.save(series, identity, bars_at(keys, calendar), Coverage(IntervalSet([covered])))
    return series


def test_a_thin_session_is_sparse_until_it_is_confirmed(
    store: BarStore, series_gaps: Callable[..., SeriesGaps]
) -> None:
    """Asked again with the same outcome it counts as whole, as long as it has as many bars."""
    series = _with_sparse_session(store)
    (gap,) = series_gaps(series).gaps
    assert gap.reason is GapReason.SPARSE
    assert gap.interval == Interval(utc(2024, 2, 14, 14, 30), utc(2024, 2, 14, 21))
    day = date(2024, 2, 14)
    key = series_key(series)
    store.ledger.confirmed.record(key, {day: 17}, NOW)
    assert len(series_gaps(series).gaps) == 1
    store.ledger.confirmed.record(key, {day: 18}, NOW)
    assert series_gaps(series).gaps == ()


def test_a_damaged_file_is_an_error_of_its_series_alone(store: BarStore) -> None:
    """It is named with the way to repair; other series are told as ever."""
    good, bad = _series(Timeframe.D1), _series(Timeframe.H1)
    for series in (good, bad):
        _fill(store, series)
    (path,) = store.layout.bar_files("AAPL", Timeframe.H1)
    path.write_bytes(b"junk")
    first, second = GapIndex(store, Calendars(), GATEWAY).series_gaps([good, bad], NOW)
    assert (first.gaps, first.error) == ((), None)
    assert str(path) in str(second.error)
    assert "ktrdr repair" in str(second.error)


def test_counts_of_every_session(store: BarStore) -> None:
    """Have, expected, covered and unexplained stand beside each session."""
    series = _series(Timeframe.H1)
    _fill(store, series, without=(date(2024, 1, 17),))
    counts = GapIndex(store, Calendars(), GATEWAY).completeness(series, NOW)
    (place,) = np.flatnonzero(counts.unexplained)
    assert str(counts.spans.days[place]) == "2024-01-17"
    assert counts.unexplained[place] == counts.expected[place] == 7
    assert counts.have.sum() == store.rows(series) == counts.covered.sum()
    assert len(counts.expected) == 41


def test_many_series_share_one_memory(layout: StoreLayout) -> None:
    """Two books of one store in one process know the same; another store is apart."""
    workspace = Workspace(Settings(ib_host="fake", ib_port=1), layout)
    index = workspace.gap_index()
    universe = [Series(stock(f"S{number}"), Timeframe.D1) for number in range(50)]
    found = index.series_gaps(universe, NOW)
    assert len(found) == 50
    assert repr(workspace.gap_index()).endswith("50 series known)")
    assert workspace.gap_index().series_gaps(universe, NOW)[0] is found[0]
    assert repr(GapIndex(index.store, Calendars(), GATEWAY, memory=Memory())).endswith(
        "0 series known)"
    )


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (AttemptKind.BLOCKED, GapReason.BLOCKED),
        (AttemptKind.NO_DATA, GapReason.NO_DATA),
        (AttemptKind.UNKNOWN, GapReason.FAILED),
    ],
)
def test_what_concerns_a_whole_series_is_the_reason_of_all_its_gaps(
    store: BarStore, series_gaps: Callable[..., SeriesGaps], kind: AttemptKind, reason: GapReason
) -> None:
    """A gap that came to be after the try has its reason and its next time too."""
    series = _series(Timeframe.D1)
    _fill(store, series, end=date(2024, 2, 1))
    due = NOW + timedelta(days=1)
    store.ledger.attempts.record(
        *(series_key(series), Interval(utc(2024, 1, 5), utc(2024, 1, 6)), kind),
        error="refused",
        code=200,
        next_try_at=due,
        at=NOW,
    )
    (gap,) = series_gaps(series).gaps
    assert (gap.reason, gap.detail, gap.next_try_at) == (reason, "refused", due)


@pytest.mark.parametrize("bounds", [{"end": date(2024, 2, 10)}, {"start": date(2024, 2, 20)}])
def test_a_sparse_session_outside_the_bounds_of_a_series_is_not_counted(
    store: BarStore, bounds: dict[str, date]
) -> None:
    """An end or a later start in the universe leaves bars outside: they count for nothing."""
    series = _with_sparse_session(store)
    chosen = Series(replace(series.instrument, **bounds), series.timeframe)
    begins = utc(2024, 1, 2, 14, 30)
    store.ledger.heads.record(1, "TRADES", GATEWAY, head=begins, asked_at=NOW)
    before = Interval(utc(2023, 12, 20, 14, 30), begins)
    said = Statement(before, StatementKind.BEGINS, "1d", NOW, "request")
    store.ledger.statements.record("AAPL", GATEWAY, [said], NOW)
    index = GapIndex(store, Calendars(), GATEWAY)
    (found,) = index.series_gaps([chosen], NOW)
    assert found.gaps == ()
    assert index.completeness(chosen, NOW).unexplained.sum() == 0
