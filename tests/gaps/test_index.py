"""The gap index: what each series holds and lacks, from files and ledger alone."""

from collections.abc import Callable, Iterable
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from ktrdr_pipelines.app.workspace import Workspace
from ktrdr_pipelines.domain.bars import micros, moment, timestamps
from ktrdr_pipelines.domain.calendars.registry import Calendars, calendar_named
from ktrdr_pipelines.domain.calendars.session_grid import session_grid
from ktrdr_pipelines.domain.calendars.sessions import interval_between
from ktrdr_pipelines.domain.coverage import Coverage, Emptiness
from ktrdr_pipelines.domain.instruments import Instrument, Origin, Series, identity_of
from ktrdr_pipelines.domain.intervals import Interval, IntervalSet
from ktrdr_pipelines.domain.planning.empty_ranges import Statement, StatementKind
from ktrdr_pipelines.domain.planning.gaps import (
    Cause,
    Claimed,
    GapReason,
    SeriesStatus,
    completeness,
    find_gaps,
)
from ktrdr_pipelines.domain.timeframes import Timeframe
from ktrdr_pipelines.gaps.index import GapIndex, Memory, SeriesGaps
from ktrdr_pipelines.settings import Settings
from ktrdr_pipelines.store.bars.bar_store import BarStore
from ktrdr_pipelines.store.layout import StoreLayout
from ktrdr_pipelines.store.ledger.attempts import AttemptKind
from ktrdr_pipelines.store.ledger.ledger import series_key
from tests.support.complete_series import save_complete
from tests.support.fake_gateway import bars_at, dense_keys, fx, stock, true_keys, utc
from tests.support.older_files import make_older

GATEWAY = "fake:1"

NOW = utc(2024, 3, 1, 12)

START = date(2024, 1, 2)


@pytest.fixture
def series_gaps(store: BarStore) -> Callable[..., SeriesGaps]:
    """Return a function that finds the gaps of a series, with one memory for the whole test."""
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
    """Save a complete series, by default to the end of February."""
    save_complete(store, series, first, end, without=without)


@pytest.mark.parametrize(
    ("timeframe", "is_fx"),
    [*((timeframe, False) for timeframe in Timeframe), (Timeframe.H4, True), (Timeframe.D1, True)],
)
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
    """Two missing days are two gaps."""
    series = _series(Timeframe.H1)
    _fill(store, series, without=(date(2024, 1, 17), date(2024, 2, 5)))
    gaps = series_gaps(series).gaps
    assert [gap.interval.start.date() for gap in gaps] == [date(2024, 1, 17), date(2024, 2, 5)]
    assert [(gap.sessions, gap.bars) for gap in gaps] == [(1, 7), (1, 7)]


def test_bars_saved_since_the_last_call_are_seen(
    store: BarStore, series_gaps: Callable[..., SeriesGaps]
) -> None:
    """A result is kept only while the files do not change."""
    series = _series(Timeframe.M1)
    _fill(store, series, end=date(2024, 2, 1))
    assert series_gaps(series).gaps[0].interval.start == utc(2024, 2, 1, 14, 30)
    _fill(store, series)
    assert series_gaps(series).gaps == ()


def test_a_session_that_closes_becomes_a_gap(
    store: BarStore, series_gaps: Callable[..., SeriesGaps]
) -> None:
    """Its bars are awaited until half an hour after the close; then they are missing."""
    series = _series(Timeframe.H1)
    _fill(store, series)
    at_noon = series_gaps(series, utc(2024, 3, 1, 17))
    assert at_noon.gaps == ()
    assert list(at_noon.waiting) == [Interval(utc(2024, 3, 1, 14, 30), utc(2024, 3, 1, 16, 59, 55))]
    after_close = series_gaps(series, utc(2024, 3, 1, 21, 29))
    assert after_close.gaps == ()
    assert list(after_close.waiting) == [Interval(utc(2024, 3, 1, 14, 30), utc(2024, 3, 1, 21))]
    closed = series_gaps(series, utc(2024, 3, 1, 21, 30))
    assert [gap.bars for gap in closed.gaps] == [7]
    assert not closed.waiting


def test_an_attempt_is_the_reason_of_a_gap(
    store: BarStore, series_gaps: Callable[..., SeriesGaps]
) -> None:
    """Each kind of attempt has its reason; error and time of the next attempt are shown too."""
    series = _series(Timeframe.D1)
    _fill(store, series, end=date(2024, 2, 1))
    assert [gap.reason for gap in series_gaps(series).gaps] == [GapReason.MISSING]
    due = NOW + timedelta(minutes=5)
    reasons = {
        AttemptKind.ERROR: GapReason.FAILED,
        AttemptKind.PROBED: GapReason.UNCONFIRMED,
        AttemptKind.CONTRADICTED: GapReason.CONTRADICTED,
        AttemptKind.SPARSE: GapReason.SPARSE,
        AttemptKind.NO_DATA: GapReason.NO_DATA,
        AttemptKind.BLOCKED: GapReason.BLOCKED,
    }
    for number, (kind, reason) in enumerate(reasons.items()):
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


def test_a_missing_permission_is_the_reason_before_newer_attempts(
    store: BarStore, series_gaps: Callable[..., SeriesGaps]
) -> None:
    """It lasts longer than any other failure."""
    series = _series(Timeframe.D1)
    _fill(store, series, end=date(2024, 2, 1))
    for number, kind in enumerate((AttemptKind.BLOCKED, AttemptKind.ERROR)):
        store.ledger.attempts.record(
            *(series_key(series), Interval(utc(2024, 2, 1), utc(2024, 3, 2)), kind),
            error="refused",
            code=None,
            next_try_at=None,
            at=NOW + timedelta(seconds=number),
        )
    (gap,) = series_gaps(series).gaps
    assert gap.reason is GapReason.BLOCKED


def test_a_proof_of_emptiness_explains_until_it_expires(
    store: BarStore, series_gaps: Callable[..., SeriesGaps]
) -> None:
    """A range is covered while it is confirmed empty, and then a gap with that reason."""
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


def test_nothing_is_expected_before_the_oldest_data_of_the_gateway(
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
        requested = Interval(utc(2024, 1, 2, 14, 30), at)
        said = Statement(requested, StatementKind.BEGINS, "1d", NOW, f"request {at}")
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
    """Save a series to March whose session of 14 February has few bars."""
    series, calendar = _series(Timeframe.M5), calendar_named("XNYS.RTH")
    _fill(store, series, end=date(2024, 2, 1))
    keys = dense_keys("XNYS.RTH", Timeframe.M5, date(2024, 2, 1), date(2024, 3, 1))
    start = micros(utc(2024, 2, 14, 16))
    keys = keys[(keys < start) | (keys >= start + 20 * 3_600_000_000)]
    covered = interval_between(calendar, Timeframe.M5, date(2024, 2, 1), date(2024, 3, 1))
    identity = identity_of(series, contract_id=1, origin=Origin.IB)
    store.save(series, identity, bars_at(keys, calendar), Coverage(IntervalSet([covered])))
    return series


def test_a_session_is_sparse_until_it_is_confirmed(
    store: BarStore, series_gaps: Callable[..., SeriesGaps]
) -> None:
    """A confirmation holds while the session has as many bars."""
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
    """The error names the file and hints at repair; other series have none."""
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
    """Held, expected, covered and unexplained bars of each session."""
    series = _series(Timeframe.H1)
    _fill(store, series, without=(date(2024, 1, 17),))
    counts = GapIndex(store, Calendars(), GATEWAY).completeness(series, NOW)
    (position,) = np.flatnonzero(counts.unexplained)
    assert str(counts.spans.days[position]) == "2024-01-17"
    assert counts.unexplained[position] == counts.expected[position] == 7
    assert counts.have.sum() == store.rows(series) == counts.covered.sum()
    assert len(counts.expected) == 41


def test_many_series_share_one_memory(layout: StoreLayout) -> None:
    """Two gap indexes of one store share it; one with its own memory does not."""
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
    """Gaps that are newer than the attempt included."""
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
    """Bars before the start or after the end in the universe are not checked."""
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


KEYS = ("XNYS.RTH", "XNYS.ETH", "FX", "XLON.RTH", "XTKS.RTH", "XHKG.RTH", "XETR.RTH", "CRYPTO")

FIRST, END = date(2004, 1, 1), date(2024, 1, 1)

LATER = utc(2024, 1, 20)

DAY = timedelta(days=1)


def _instrument(key: str, start: date) -> Instrument:
    return replace(fx() if key == "FX" else stock(calendar=key), start=start)


class IndexedStore:
    """A store with its gap index."""

    def __init__(self, store: BarStore) -> None:
        self.store = store
        self.index = GapIndex(store, Calendars(), "fake:1")

    def fill(self, series: Series, first: date, end: date) -> Path:
        """Save and cover every bar of some session dates; return the file."""
        return save_complete(self.store, series, first, end)

    def series_gaps(self, series: Series, now: datetime = LATER) -> SeriesGaps:
        (found,) = self.index.series_gaps([series], now)
        return found


@pytest.fixture
def indexed(store: BarStore) -> IndexedStore:
    """Return an empty store with its gap index."""
    return IndexedStore(store)


def _keep(path: Path, table: pa.Table, kept: Iterable[bool]) -> None:
    """Rewrite a file with some of its bars, as another program would."""
    pq.write_table(table.filter(pa.array(kept)), path)


def _hole(random: np.random.Generator, expected: np.ndarray, timeframe: Timeframe) -> Interval:
    """Return an interval of one bar to six weeks that begins inside a session."""
    start = int(random.choice(expected))
    longest = 42 * 86_400_000_000
    length = timeframe.seconds * 1_000_000
    most = int(np.exp(random.uniform(np.log(length), np.log(longest + length))))
    return Interval(moment(start), moment(start + max(length, most // length * length)))


@pytest.mark.parametrize("count", [25, pytest.param(125, marks=pytest.mark.slow)])
@pytest.mark.parametrize("key", KEYS)
def test_no_hole_in_coverage_comes_out_explained(key: str, count: int) -> None:
    """Each hole is a gap of exactly its extent, whatever else is recorded.

    Heads that are later than bars held, attempts of any kind, and expired proofs explain nothing.
    """
    random = np.random.default_rng(KEYS.index(key))
    calendar = calendar_named(key)
    for _ in range(count):
        timeframe = Timeframe(str(random.choice(list(Timeframe))))
        first = date(2005, 1, 3) + int(random.integers(0, 6_000)) * DAY
        whole = interval_between(calendar, timeframe, first, first + 200 * DAY)
        sessions = session_grid(calendar, timeframe).spans_in(whole)
        expected = IntervalSet(span.interval for span in sessions).clip(whole)
        oldest = next(iter(expected)).start
        spans = session_grid(calendar, timeframe)
        inside = spans.starts[(spans.starts > micros(oldest)) & (spans.starts < micros(whole.end))]
        hole = _hole(random, inside, timeframe)
        head = micros(oldest + float(random.uniform(-100, 300)) * DAY)
        claimed = [_anything(random, whole) for _ in range(int(random.integers(0, 4)))]
        covered = IntervalSet(IntervalSet([whole]) - IntervalSet([hole]))
        status = SeriesStatus(covered, micros(whole.start), head, micros(oldest))
        now = whole.end + 9 * DAY
        gaps = find_gaps(spans, replace(status, wanted_to=micros(whole.end)), now, claimed)
        found = IntervalSet(gap.interval for gap in gaps)
        missing = expected.clip(hole)
        assert missing
        assert found & expected == missing, (timeframe, hole)
        assert all(gap.bars > 0 for gap in gaps)
        counts = completeness(
            spans, status, have=np.zeros(len(spans)), empty=IntervalSet(), now=now
        )
        touched = (spans.starts < micros(hole.end)) & (spans.ends > micros(hole.start))
        assert not counts.explained[touched].any()


def _anything(random: np.random.Generator, whole: Interval) -> Claimed:
    low, high = sorted(random.uniform(0, 1, 2))
    part = Interval(whole.start + whole.length * low, whole.start + whole.length * (high + 1e-6))
    reasons = [reason for reason in GapReason if reason is not GapReason.MISSING]
    return Claimed(part, Cause(random.choice(reasons), "tried", None))


@pytest.mark.parametrize("key", ["XNYS.RTH", "XNYS.ETH", "FX", "XTKS.RTH"])
@pytest.mark.parametrize("timeframe", [Timeframe.M15, Timeframe.H1, Timeframe.D1])
def test_no_hole_in_a_file_comes_out_explained(
    indexed: IndexedStore, key: str, timeframe: Timeframe
) -> None:
    """Bars removed from a file, from one bar to weeks, make gaps of exactly their sessions.

    The file is of an earlier version: one with digests is damaged where a session lost a part.
    """
    random = np.random.default_rng(7)
    series = Series(_instrument(key, date(2023, 2, 1)), timeframe)
    path = indexed.fill(series, date(2023, 2, 1), date(2023, 6, 1))
    make_older(indexed.store.layout, path)
    table = pq.read_table(path, partitioning=None)
    keys = timestamps(table)
    end = interval_between(calendar_named(key), timeframe, date(2023, 6, 1), date(2023, 7, 1)).start
    for number in range(12):
        hole = _hole(random, keys[1:], timeframe)
        gone = (keys >= micros(hole.start)) & (keys < micros(hole.end))
        head = moment(int(random.choice(keys)))
        indexed.store.ledger.heads.record(
            1, series.instrument.what_to_show, "fake:1", head=head, asked_at=LATER
        )
        _keep(path, table, ~gone)
        found = indexed.series_gaps(series, end + timedelta(hours=5, minutes=number))
        days = {gap_day for gap in found.gaps for gap_day in _days(series, gap.interval)}
        assert days == set(pc.unique(table["session_date"].filter(pa.array(gone))).to_pylist())
        assert found.rows == int(np.count_nonzero(~gone))


@pytest.mark.parametrize("timeframe", [Timeframe.M15, Timeframe.H1])
def test_a_removed_part_of_a_session_is_damage(indexed: IndexedStore, timeframe: Timeframe) -> None:
    """In a file with digests: the series has an error, and is not complete."""
    series = Series(_instrument("XNYS.RTH", date(2023, 2, 1)), timeframe)
    path = indexed.fill(series, date(2023, 2, 1), date(2023, 6, 1))
    table = pq.read_table(path, partitioning=None)
    _keep(path, table, np.arange(table.num_rows) != 100)
    found = indexed.series_gaps(series)
    assert found.error is not None
    assert "cannot be checked" in str(found.error)


def _days(series: Series, interval: Interval) -> list[date]:
    """Return the session dates that a gap overlaps."""
    calendar = calendar_named(series.instrument.calendar)
    spans = session_grid(calendar, series.timeframe)
    low = np.searchsorted(spans.ends, micros(interval.start), side="right")
    high = np.searchsorted(spans.starts, micros(interval.end), side="left")
    days: list[date] = spans.days[low:high].astype(object).tolist()
    return days


@pytest.mark.parametrize(
    ("key", "timeframe"),
    [
        ("XNYS.RTH", Timeframe.H1),
        ("XNYS.RTH", Timeframe.W1),
        ("XLON.RTH", Timeframe.D1),
        ("XTKS.RTH", Timeframe.W1),
        ("FX", Timeframe.H1),
        ("FX", Timeframe.D1),
    ],
)
def test_twenty_years_complete_have_no_gap(
    indexed: IndexedStore, key: str, timeframe: Timeframe
) -> None:
    """Twenty years of sessions: 0 gaps; one session removed from each year: exactly those."""
    series = Series(_instrument(key, FIRST), timeframe)
    path = indexed.fill(series, FIRST, END)
    last = interval_between(calendar_named(key), timeframe, END, END + 30 * DAY).start
    assert indexed.series_gaps(series, last).gaps == ()
    table = pq.read_table(path, partitioning=None)
    days = np.unique(table["session_date"].to_numpy().astype("datetime64[D]"))
    random = np.random.default_rng(4)
    years = days.astype("datetime64[Y]").astype(int) + 1970
    chosen = [random.choice(days[years == year][1:]) for year in range(2004, 2024)]
    _keep(path, table, ~np.isin(table["session_date"].to_numpy().astype("datetime64[D]"), chosen))
    gaps = indexed.series_gaps(series, last).gaps
    assert [gap.sessions for gap in gaps] == [1] * 20
    week = timedelta(days=6 if timeframe is Timeframe.W1 else 0)
    for gap, day in zip(gaps, sorted(chosen), strict=True):
        (named,) = _days(series, gap.interval)
        assert named <= day.item() <= named + week


def test_321_and_3140_false_gaps_of_the_original(indexed: IndexedStore) -> None:
    """A year of hourly bars over weekends, holidays and half days has none, stock or currency.

    The original system saw 321 false gaps in one load and 3,140 in another.
    """
    for key in ("XNYS.RTH", "XNYS.ETH", "FX"):
        series = Series(
            replace(_instrument(key, date(2023, 1, 1)), symbol=key.replace(".", "")), Timeframe.H1
        )
        indexed.fill(series, date(2023, 1, 1), date(2024, 1, 1))
        found = indexed.series_gaps(series, utc(2024, 1, 1, 5))
        assert found.gaps == ()
        assert found.rows > 1_700


Filled = Callable[[str, Timeframe, date, date], Series]


@pytest.fixture
def filled(indexed: IndexedStore) -> Filled:
    """Return a function that fills a series between two session dates."""

    def fill(key: str, timeframe: Timeframe, first: date, end: date) -> Series:
        series = Series(_instrument(key, first), timeframe)
        indexed.fill(series, first, end)
        return series

    return fill


@pytest.mark.parametrize("now", [utc(2024, 1, 6, 3), utc(2024, 1, 7, 18), utc(2024, 1, 8, 14)])
def test_weekend(indexed: IndexedStore, filled: Filled, now: datetime) -> None:
    """With all bars up to Friday nothing is missing on Saturday, Sunday or Monday before nine."""
    series = filled("XNYS.RTH", Timeframe.M5, date(2024, 1, 2), date(2024, 1, 6))
    found = indexed.series_gaps(series, now)
    assert (found.gaps, list(found.waiting)) == ((), [])


def test_holiday(indexed: IndexedStore, filled: Filled) -> None:
    """On Martin Luther King's day nothing is expected; on the Tuesday after it is."""
    series = filled("XNYS.RTH", Timeframe.D1, date(2024, 1, 2), date(2024, 1, 13))
    assert indexed.series_gaps(series, utc(2024, 1, 16, 12)).gaps == ()
    (gap,) = indexed.series_gaps(series, utc(2024, 1, 17)).gaps
    assert gap.interval.start.date() == date(2024, 1, 16)


def test_a_day_of_mourning_is_no_gap(indexed: IndexedStore, filled: Filled) -> None:
    """2018-12-05 and 2025-01-09 had no session, and the storm closed 2012-10-29 and 30."""
    for first, end in (
        (date(2018, 11, 1), date(2019, 1, 1)),
        (date(2025, 1, 2), date(2025, 1, 18)),
        (date(2012, 10, 1), date(2012, 11, 20)),
    ):
        series = filled("XNYS.RTH", Timeframe.H1, first, end)
        assert (
            indexed.series_gaps(series, datetime(end.year, end.month, end.day, 4, tzinfo=UTC)).gaps
            == ()
        )


def test_half_day(indexed: IndexedStore, filled: Filled) -> None:
    """After a close at 13:00 the afternoon is no gap, and the session closes then."""
    series = filled("XNYS.RTH", Timeframe.M5, date(2024, 7, 1), date(2024, 7, 4))
    assert indexed.series_gaps(series, utc(2024, 7, 3, 17, 32)).gaps == ()
    assert indexed.series_gaps(series, utc(2024, 7, 5, 12)).gaps == ()
    missing = filled("XNYS.RTH", Timeframe.M15, date(2024, 7, 1), date(2024, 7, 3))
    (gap,) = indexed.series_gaps(missing, utc(2024, 7, 3, 17, 32)).gaps
    assert (gap.bars, gap.interval.end) == (14, utc(2024, 7, 3, 17))


@pytest.mark.parametrize("key", ["XNYS.RTH", "FX", "XLON.RTH"])
@pytest.mark.parametrize("month", [3, 10, 11])
def test_dst(indexed: IndexedStore, filled: Filled, key: str, month: int) -> None:
    """When clocks go forward or back no hour is missing, and none is counted twice."""
    first, end = date(2024, month, 1), date(2024, month, 1) + 30 * DAY
    series = filled(key, Timeframe.H1, first, end)
    found = indexed.series_gaps(series, moment(micros(utc(end.year, end.month, end.day, 4))))
    assert found.gaps == ()
    counts = indexed.index.completeness(series, utc(end.year, end.month, end.day, 4))
    assert (counts.have == counts.expected).all()


def test_friday_evening_tail(indexed: IndexedStore, filled: Filled) -> None:
    """On Friday evening a Friday without bars is missing, before the weekend ends."""
    series = filled("XNYS.RTH", Timeframe.H1, date(2024, 1, 2), date(2024, 1, 5))
    (gap,) = indexed.series_gaps(series, utc(2024, 1, 5, 22)).gaps
    assert gap.interval == Interval(utc(2024, 1, 5, 14, 30), utc(2024, 1, 5, 21))
    euro = filled("FX", Timeframe.H1, date(2024, 1, 2), date(2024, 1, 5))
    (gap,) = indexed.series_gaps(euro, utc(2024, 1, 6, 12)).gaps
    assert gap.interval == Interval(utc(2024, 1, 4, 22, 15), utc(2024, 1, 5, 22))


def test_month_end_and_leap_day(indexed: IndexedStore, filled: Filled) -> None:
    """The 29th of February and the last day of each month are sessions like others."""
    series = filled("XNYS.RTH", Timeframe.D1, date(2024, 2, 1), date(2024, 3, 1))
    assert indexed.series_gaps(series, utc(2024, 3, 1, 12)).gaps == ()
    assert indexed.series_gaps(series).last == date(2024, 2, 29)
    lacking = filled("XNYS.RTH", Timeframe.H1, date(2024, 2, 1), date(2024, 2, 29))
    (gap,) = indexed.series_gaps(lacking, utc(2024, 3, 1, 12)).gaps
    assert gap.interval.start.date() == date(2024, 2, 29)


def test_first_day_of_listing(indexed: IndexedStore, filled: Filled) -> None:
    """A first session that begins in the afternoon is whole, and nothing before it is missing."""
    series = Series(_instrument("XNYS.RTH", date(2023, 1, 1)), Timeframe.H1)
    calendar = calendar_named("XNYS.RTH")
    head = utc(2023, 9, 14, 16, 5)
    indexed.store.ledger.heads.record(1, "TRADES", "fake:1", head=head, asked_at=LATER)
    requested = Interval(utc(2023, 9, 1, 13, 30), utc(2023, 9, 14, 16))
    said = Statement(requested, StatementKind.BEGINS, "1h", LATER, "a request")
    indexed.store.ledger.statements.record(series.symbol, "fake:1", [said], LATER)
    keys = true_keys(calendar, Timeframe.H1, date(2023, 9, 14), date(2023, 10, 1))[2:]
    interval = interval_between(calendar, Timeframe.H1, date(2023, 9, 14), date(2023, 10, 1))
    bars, identity = bars_at(keys, calendar), identity_of(series, contract_id=1, origin=Origin.IB)
    indexed.store.save(series, identity, bars, Coverage(IntervalSet([interval])))
    found = indexed.series_gaps(series, utc(2023, 10, 1))
    assert found.gaps == ()
    assert found.first == date(2023, 9, 14)


def test_a_store_90_days_old(indexed: IndexedStore, filled: Filled) -> None:
    """The time since is one gap, from the newest covered bar to the last close."""
    series = filled("XNYS.RTH", Timeframe.M5, date(2023, 10, 2), date(2023, 10, 21))
    (gap,) = indexed.series_gaps(series, utc(2024, 1, 19, 22)).gaps
    assert gap.interval == Interval(utc(2023, 10, 23, 13, 30), utc(2024, 1, 19, 21))
    assert gap.sessions == len(
        calendar_named("XNYS.RTH").sessions(date(2023, 10, 23), date(2024, 1, 20))
    )


def test_sessions_that_only_the_gateway_knows_are_not_guessed(indexed: IndexedStore) -> None:
    """Before the gateway states its sessions, all of a series is missing."""
    series = Series(_instrument("GATEWAY:Europe/London", FIRST), Timeframe.D1)
    found = indexed.series_gaps(series)
    (gap,) = found.gaps
    assert gap.interval.end == LATER
    assert "its sessions are not known" in gap.detail


def test_expiry_day(indexed: IndexedStore, filled: Filled) -> None:
    """The last trading day is expected, and the day after is not."""
    last = date(2023, 12, 15)
    contract = replace(_instrument("XNYS.RTH", date(2023, 12, 1)), end=last + DAY)
    series = Series(contract, Timeframe.H1)
    indexed.fill(series, date(2023, 12, 1), last)
    (gap,) = indexed.series_gaps(series, utc(2024, 1, 5)).gaps
    assert gap.interval == Interval(utc(2023, 12, 15, 14, 30), utc(2023, 12, 15, 21))
    assert indexed.series_gaps(series, utc(2023, 12, 15, 17)).waiting
    assert not indexed.series_gaps(series, utc(2023, 12, 18, 17)).waiting
    indexed.fill(series, last, last + DAY)
    assert indexed.series_gaps(series, utc(2024, 1, 5)).gaps == ()
    counts = indexed.index.completeness(series, utc(2024, 1, 5))
    assert counts.spans.days[-1] == np.datetime64(last)
