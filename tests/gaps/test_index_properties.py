"""Properties of the gap index: no false gap in decades, and no gap that ends up explained."""

from collections.abc import Callable, Iterable
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from ktrdr_pipelines.domain.bars import micros, moment, timestamps
from ktrdr_pipelines.domain.calendars.registry import Calendars, calendar_named
from ktrdr_pipelines.domain.calendars.session_grid import session_grid
from ktrdr_pipelines.domain.calendars.sessions import interval_between
from ktrdr_pipelines.domain.coverage import Coverage
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
from ktrdr_pipelines.gaps.index import GapIndex, SeriesGaps
from ktrdr_pipelines.store.bars.bar_store import BarStore
from ktrdr_pipelines.store.layout import create_store
from ktrdr_pipelines.store.ledger.ledger import Ledger
from tests.support.fake_gateway import bars_at, fx, stock, true_keys, utc
from tests.support.older_files import make_older

KEYS = ("XNYS.RTH", "XNYS.ETH", "FX", "XLON.RTH", "XTKS.RTH", "XHKG.RTH", "XETR.RTH", "CRYPTO")
FIRST, END = date(2004, 1, 1), date(2024, 1, 1)
NOW = utc(2024, 1, 20)
DAY = timedelta(days=1)


def _instrument(key: str, start: date) -> Instrument:
    return replace(fx() if key == "FX" else stock(calendar=key), start=start)


class Shelf:
    """A store with one memory over the whole test."""

    def __init__(self, folder: Path) -> None:
        layout = create_store(folder)
        self.store = BarStore(layout, Ledger(layout.ledger))
        self.index = GapIndex(self.store, Calendars(), "fake:1")

    def fill(self, series: Series, first: date, end: date) -> Path:
        """Save every bar of some session dates, covered without a hole."""
        calendar = calendar_named(series.instrument.calendar)
        keys = true_keys(calendar, series.timeframe, first, end)
        interval = interval_between(calendar, series.timeframe, first, end)
        bars = bars_at(keys, calendar, daily=not series.timeframe.is_intraday)
        identity = identity_of(series, contract_id=1, origin=Origin.IB)
        result = self.store.save(series, identity, bars, Coverage(IntervalSet([interval])))
        return result.files[0]

    def series_gaps(self, series: Series, now: datetime = NOW) -> SeriesGaps:
        (found,) = self.index.series_gaps([series], now)
        return found


@pytest.fixture
def shelf(tmp_path: Path) -> Shelf:
    """Return an empty store with its gap index."""
    return Shelf(tmp_path / "data")


def _keep(path: Path, table: pa.Table, kept: Iterable[bool]) -> None:
    """Rewrite a file with some of its bars, as another program would."""
    pq.write_table(table.filter(pa.array(kept)), path)


# --- holes can't be explained cheaply ------------------------------------------------------------


def _hole(dice: np.random.Generator, expected: np.ndarray, timeframe: Timeframe) -> Interval:
    """Give an interval of one bar to six weeks that begins inside a session."""
    start = int(dice.choice(expected))
    longest = 42 * 86_400_000_000
    length = timeframe.seconds * 1_000_000
    most = int(np.exp(dice.uniform(np.log(length), np.log(longest + length))))
    return Interval(moment(start), moment(start + max(length, most // length * length)))


@pytest.mark.parametrize("key", KEYS)
def test_no_hole_in_coverage_comes_out_explained(key: str) -> None:
    """Of 1,000 holes in all, whatever is known beside, each is a gap of exactly its extent.

    Heads that are later than bars held, attempts of any kind, and expired proofs are no excuse.
    """
    dice = np.random.default_rng(KEYS.index(key))
    calendar = calendar_named(key)
    for _ in range(1000 // len(KEYS)):
        timeframe = Timeframe(str(dice.choice(list(Timeframe))))
        first = date(2005, 1, 3) + int(dice.integers(0, 6_000)) * DAY
        whole = interval_between(calendar, timeframe, first, first + 200 * DAY)
        sessions = session_grid(calendar, timeframe).spans_in(whole)
        expected = IntervalSet(span.interval for span in sessions).clip(whole)
        oldest = next(iter(expected)).start
        spans = session_grid(calendar, timeframe)
        inside = spans.starts[(spans.starts > micros(oldest)) & (spans.starts < micros(whole.end))]
        hole = _hole(dice, inside, timeframe)
        head = micros(oldest + float(dice.uniform(-100, 300)) * DAY)
        claimed = [_anything(dice, whole) for _ in range(int(dice.integers(0, 4)))]
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


def _anything(dice: np.random.Generator, whole: Interval) -> Claimed:
    low, high = sorted(dice.uniform(0, 1, 2))
    part = Interval(whole.start + whole.length * low, whole.start + whole.length * (high + 1e-6))
    reasons = [reason for reason in GapReason if reason is not GapReason.MISSING]
    return Claimed(part, Cause(dice.choice(reasons), "tried", None))


@pytest.mark.parametrize("key", ["XNYS.RTH", "XNYS.ETH", "FX", "XTKS.RTH"])
@pytest.mark.parametrize("timeframe", [Timeframe.M15, Timeframe.H1, Timeframe.D1])
def test_no_hole_in_a_file_comes_out_explained(
    shelf: Shelf, key: str, timeframe: Timeframe
) -> None:
    """Bars taken out of a file, from one bar to weeks, make gaps of exactly their sessions.

    The file is of an earlier version: one with digests is damaged where a session lost a part.
    """
    dice = np.random.default_rng(7)
    series = Series(_instrument(key, date(2023, 2, 1)), timeframe)
    path = shelf.fill(series, date(2023, 2, 1), date(2023, 6, 1))
    make_older(shelf.store.layout, path)
    table = pq.read_table(path, partitioning=None)
    keys = timestamps(table)
    end = interval_between(calendar_named(key), timeframe, date(2023, 6, 1), date(2023, 7, 1)).start
    for number in range(12):
        hole = _hole(dice, keys[1:], timeframe)
        gone = (keys >= micros(hole.start)) & (keys < micros(hole.end))
        head = moment(int(dice.choice(keys)))
        shelf.store.ledger.heads.record(
            1, series.instrument.what_to_show, "fake:1", head=head, asked_at=NOW
        )
        _keep(path, table, ~gone)
        found = shelf.series_gaps(series, end + timedelta(hours=5, minutes=number))
        days = {gap_day for gap in found.gaps for gap_day in _days(series, gap.interval)}
        assert days == set(pc.unique(table["session_date"].filter(pa.array(gone))).to_pylist())
        assert found.rows == int(np.count_nonzero(~gone))


@pytest.mark.parametrize("timeframe", [Timeframe.M15, Timeframe.H1])
def test_a_part_of_a_session_that_is_gone_is_damage(shelf: Shelf, timeframe: Timeframe) -> None:
    """In a file with digests: the series has an error, and is never told as complete."""
    series = Series(_instrument("XNYS.RTH", date(2023, 2, 1)), timeframe)
    path = shelf.fill(series, date(2023, 2, 1), date(2023, 6, 1))
    table = pq.read_table(path, partitioning=None)
    _keep(path, table, np.arange(table.num_rows) != 100)
    found = shelf.series_gaps(series)
    assert found.error is not None
    assert "cannot be checked" in str(found.error)


def _days(series: Series, stamps_: Interval) -> list[date]:
    """Give the session dates that a gap concerns."""
    calendar = calendar_named(series.instrument.calendar)
    spans = session_grid(calendar, series.timeframe)
    low = np.searchsorted(spans.ends, micros(stamps_.start), side="right")
    high = np.searchsorted(spans.starts, micros(stamps_.end), side="left")
    days: list[date] = spans.days[low:high].astype(object).tolist()
    return days


# --- decades ------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["XNYS.RTH", "XLON.RTH", "XTKS.RTH", "FX"])
@pytest.mark.parametrize("timeframe", [Timeframe.H1, Timeframe.D1, Timeframe.W1])
def test_twenty_years_complete_have_no_gap(shelf: Shelf, key: str, timeframe: Timeframe) -> None:
    """Twenty years of sessions: 0 gaps; one session taken out of each year: exactly those."""
    series = Series(_instrument(key, FIRST), timeframe)
    path = shelf.fill(series, FIRST, END)
    last = interval_between(calendar_named(key), timeframe, END, END + 30 * DAY).start
    assert shelf.series_gaps(series, last).gaps == ()
    table = pq.read_table(path, partitioning=None)
    days = np.unique(table["session_date"].to_numpy().astype("datetime64[D]"))
    dice = np.random.default_rng(4)
    years = days.astype("datetime64[Y]").astype(int) + 1970
    chosen = [dice.choice(days[years == year][1:]) for year in range(2004, 2024)]
    _keep(path, table, ~np.isin(table["session_date"].to_numpy().astype("datetime64[D]"), chosen))
    gaps = shelf.series_gaps(series, last).gaps
    assert [gap.sessions for gap in gaps] == [1] * 20
    week = timedelta(days=6 if timeframe is Timeframe.W1 else 0)
    for gap, day in zip(gaps, sorted(chosen), strict=True):
        (named,) = _days(series, gap.interval)
        assert named <= day.item() <= named + week


def test_321_and_3140_false_gaps_of_the_original(shelf: Shelf) -> None:
    """A year of hourly bars over weekends, holidays and half days has none, stock or currency.

    The original system saw 321 false gaps in one load and 3,140 in another.
    """
    for key in ("XNYS.RTH", "XNYS.ETH", "FX"):
        series = Series(
            replace(_instrument(key, date(2023, 1, 1)), symbol=key.replace(".", "")), Timeframe.H1
        )
        shelf.fill(series, date(2023, 1, 1), date(2024, 1, 1))
        found = shelf.series_gaps(series, utc(2024, 1, 1, 5))
        assert found.gaps == ()
        assert found.rows > 1_700


# --- by name ------------------------------------------------------------------------------------

Filled = Callable[[str, Timeframe, date, date], Series]


@pytest.fixture
def filled(shelf: Shelf) -> Filled:
    """Fill a series between two session dates."""

    def fill(key: str, timeframe: Timeframe, first: date, end: date) -> Series:
        series = Series(_instrument(key, first), timeframe)
        shelf.fill(series, first, end)
        return series

    return fill


@pytest.mark.parametrize("now", [utc(2024, 1, 6, 3), utc(2024, 1, 7, 18), utc(2024, 1, 8, 14)])
def test_weekend(shelf: Shelf, filled: Filled, now: datetime) -> None:
    """With all bars up to Friday nothing is missing on Saturday, Sunday or Monday before nine."""
    series = filled("XNYS.RTH", Timeframe.M5, date(2024, 1, 2), date(2024, 1, 6))
    found = shelf.series_gaps(series, now)
    assert (found.gaps, list(found.waiting)) == ((), [])


def test_holiday(shelf: Shelf, filled: Filled) -> None:
    """On Martin Luther King's day nothing is expected; on the Tuesday after it is."""
    series = filled("XNYS.RTH", Timeframe.D1, date(2024, 1, 2), date(2024, 1, 13))
    assert shelf.series_gaps(series, utc(2024, 1, 16, 12)).gaps == ()
    (gap,) = shelf.series_gaps(series, utc(2024, 1, 17)).gaps
    assert gap.interval.start.date() == date(2024, 1, 16)


def test_a_day_of_mourning_is_no_gap(shelf: Shelf, filled: Filled) -> None:
    """2018-12-05 and 2025-01-09 had no session, and the storm closed 2012-10-29 and 30."""
    for first, end in (
        (date(2018, 11, 1), date(2019, 1, 1)),
        (date(2025, 1, 2), date(2025, 1, 18)),
        (date(2012, 10, 1), date(2012, 11, 20)),
    ):
        series = filled("XNYS.RTH", Timeframe.H1, first, end)
        assert (
            shelf.series_gaps(series, datetime(end.year, end.month, end.day, 4, tzinfo=UTC)).gaps
            == ()
        )


def test_half_day(shelf: Shelf, filled: Filled) -> None:
    """After a close at 13:00 the afternoon is no gap, and the session closes then."""
    series = filled("XNYS.RTH", Timeframe.M5, date(2024, 7, 1), date(2024, 7, 4))
    assert shelf.series_gaps(series, utc(2024, 7, 3, 17, 32)).gaps == ()
    assert shelf.series_gaps(series, utc(2024, 7, 5, 12)).gaps == ()
    missing = filled("XNYS.RTH", Timeframe.M15, date(2024, 7, 1), date(2024, 7, 3))
    (gap,) = shelf.series_gaps(missing, utc(2024, 7, 3, 17, 32)).gaps
    assert (gap.bars, gap.interval.end) == (14, utc(2024, 7, 3, 17))


@pytest.mark.parametrize("key", ["XNYS.RTH", "FX", "XLON.RTH"])
@pytest.mark.parametrize("month", [3, 10, 11])
def test_dst(shelf: Shelf, filled: Filled, key: str, month: int) -> None:
    """When clocks go forward or back no hour is missing, and none is counted twice."""
    first, end = date(2024, month, 1), date(2024, month, 1) + 30 * DAY
    series = filled(key, Timeframe.H1, first, end)
    found = shelf.series_gaps(series, moment(micros(utc(end.year, end.month, end.day, 4))))
    assert found.gaps == ()
    counts = shelf.index.completeness(series, utc(end.year, end.month, end.day, 4))
    assert (counts.have == counts.expected).all()


def test_friday_evening_tail(shelf: Shelf, filled: Filled) -> None:
    """On Friday evening Friday is missing if it is not there: the weekend hides nothing."""
    series = filled("XNYS.RTH", Timeframe.H1, date(2024, 1, 2), date(2024, 1, 5))
    (gap,) = shelf.series_gaps(series, utc(2024, 1, 5, 22)).gaps
    assert gap.interval == Interval(utc(2024, 1, 5, 14, 30), utc(2024, 1, 5, 21))
    euro = filled("FX", Timeframe.H1, date(2024, 1, 2), date(2024, 1, 5))
    (gap,) = shelf.series_gaps(euro, utc(2024, 1, 6, 12)).gaps
    assert gap.interval == Interval(utc(2024, 1, 4, 22, 15), utc(2024, 1, 5, 22))


def test_month_end_and_leap_day(shelf: Shelf, filled: Filled) -> None:
    """The 29th of February and the last day of each month are sessions like others."""
    series = filled("XNYS.RTH", Timeframe.D1, date(2024, 2, 1), date(2024, 3, 1))
    assert shelf.series_gaps(series, utc(2024, 3, 1, 12)).gaps == ()
    assert shelf.series_gaps(series).last == date(2024, 2, 29)
    lacking = filled("XNYS.RTH", Timeframe.H1, date(2024, 2, 1), date(2024, 2, 29))
    (gap,) = shelf.series_gaps(lacking, utc(2024, 3, 1, 12)).gaps
    assert gap.interval.start.date() == date(2024, 2, 29)


def test_first_day_of_listing(shelf: Shelf, filled: Filled) -> None:
    """A first session that begins in the afternoon is whole, and nothing before it is missing."""
    series = Series(_instrument("XNYS.RTH", date(2023, 1, 1)), Timeframe.H1)
    calendar = calendar_named("XNYS.RTH")
    head = utc(2023, 9, 14, 16, 5)
    shelf.store.ledger.heads.record(1, "TRADES", "fake:1", head=head, asked_at=NOW)
    asked = Interval(utc(2023, 9, 1, 13, 30), utc(2023, 9, 14, 16))
    said = Statement(asked, StatementKind.BEGINS, "1h", NOW, "a request")
    shelf.store.ledger.statements.record(series.symbol, "fake:1", [said], NOW)
    keys = true_keys(calendar, Timeframe.H1, date(2023, 9, 14), date(2023, 10, 1))[2:]
    interval = interval_between(calendar, Timeframe.H1, date(2023, 9, 14), date(2023, 10, 1))
    bars, identity = bars_at(keys, calendar), identity_of(series, contract_id=1, origin=Origin.IB)
    shelf.store.save(series, identity, bars, Coverage(IntervalSet([interval])))
    found = shelf.series_gaps(series, utc(2023, 10, 1))
    assert found.gaps == ()
    assert found.first == date(2023, 9, 14)


def test_a_cache_90_days_old(shelf: Shelf, filled: Filled) -> None:
    """What happened since is one gap, from the newest covered bar to the last close."""
    series = filled("XNYS.RTH", Timeframe.M5, date(2023, 10, 2), date(2023, 10, 21))
    (gap,) = shelf.series_gaps(series, utc(2024, 1, 19, 22)).gaps
    assert gap.interval == Interval(utc(2023, 10, 23, 13, 30), utc(2024, 1, 19, 21))
    assert gap.sessions == len(
        calendar_named("XNYS.RTH").sessions(date(2023, 10, 23), date(2024, 1, 20))
    )


def test_sessions_that_only_the_gateway_knows_are_said_not_guessed(shelf: Shelf) -> None:
    """Before the gateway states its sessions all is missing, and nothing is 'complete'."""
    series = Series(_instrument("GATEWAY:Europe/London", FIRST), Timeframe.D1)
    found = shelf.series_gaps(series)
    (gap,) = found.gaps
    assert gap.interval.end == NOW
    assert "its sessions are not known" in gap.detail


def test_expiry_day(shelf: Shelf, filled: Filled) -> None:
    """The last trading day is expected, the day after is not, and its bars are waited for."""
    last = date(2023, 12, 15)
    contract = replace(_instrument("XNYS.RTH", date(2023, 12, 1)), end=last + DAY)
    series = Series(contract, Timeframe.H1)
    shelf.fill(series, date(2023, 12, 1), last)
    (gap,) = shelf.series_gaps(series, utc(2024, 1, 5)).gaps
    assert gap.interval == Interval(utc(2023, 12, 15, 14, 30), utc(2023, 12, 15, 21))
    assert shelf.series_gaps(series, utc(2023, 12, 15, 17)).waiting
    assert not shelf.series_gaps(series, utc(2023, 12, 18, 17)).waiting
    shelf.fill(series, last, last + DAY)
    assert shelf.series_gaps(series, utc(2024, 1, 5)).gaps == ()
    counts = shelf.index.completeness(series, utc(2024, 1, 5))
    assert counts.spans.days[-1] == np.datetime64(last)
