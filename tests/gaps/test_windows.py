"""Windows of a series: unexplained exactly where the gap index has a gap."""

from collections.abc import Callable
from dataclasses import replace
from datetime import date, datetime, timedelta
from functools import partial

import pytest

from ktrdr_pipelines.domain.calendars.registry import Calendars, calendar_named
from ktrdr_pipelines.domain.calendars.sessions import interval_between
from ktrdr_pipelines.domain.coverage import Coverage, Emptiness
from ktrdr_pipelines.domain.instruments import Origin, Series, identity_of
from ktrdr_pipelines.domain.intervals import Interval, IntervalSet
from ktrdr_pipelines.domain.planning.empty_ranges import Statement, StatementKind
from ktrdr_pipelines.domain.planning.reports import SeriesReport
from ktrdr_pipelines.domain.timeframes import Timeframe
from ktrdr_pipelines.errors import CorruptFileError, StoreError
from ktrdr_pipelines.gaps.index import GapIndex
from ktrdr_pipelines.gaps.windows import Dates, WindowState, WindowStatus, after_load
from ktrdr_pipelines.store.bars.bar_store import BarStore
from ktrdr_pipelines.store.ledger.attempts import AttemptKind
from ktrdr_pipelines.store.ledger.ledger import series_key
from tests.support.complete_series import save_complete
from tests.support.fake_gateway import bars_at, stock, utc

GATEWAY = "fake:1"
NOW = utc(2024, 3, 1, 12)
START = date(2024, 1, 2)
MONTHS = {f"2024-{one:02d}": (date(2024, one, 1), date(2024, one + 1, 1)) for one in (1, 2, 3)}
Fill = Callable[..., None]


@pytest.fixture
def index(store: BarStore) -> GapIndex:
    """Return the gap index of the store."""
    return GapIndex(store, Calendars(), GATEWAY)


@pytest.fixture
def fill(store: BarStore) -> Fill:
    """Return a function that saves complete bars of session dates, except some."""
    return partial(save_complete, store)


def series_of(timeframe: Timeframe = Timeframe.H1, *, start: date = START) -> Series:
    """Return a series of a stock."""
    return Series(replace(stock(), start=start), timeframe)


def prove_empty(store: BarStore, series: Series, first: date, end: date) -> None:
    """Record that some session dates are confirmed empty."""
    calendar = calendar_named(series.instrument.calendar)
    interval = interval_between(calendar, series.timeframe, first, end)
    empty = Emptiness(interval, NOW - timedelta(days=1))
    identity = identity_of(series, contract_id=1, origin=Origin.IB)
    store.save(series, identity, bars_at([], calendar), Coverage(empty=(empty,)))


def states(
    index: GapIndex, series: Series, windows: dict[str, Dates], now: datetime = NOW
) -> dict[str, tuple[WindowState, int]]:
    """Return the state and the bars of each window."""
    found = index.windows(series, windows, now)
    return {name: (one.state, one.rows) for name, one in found.items()}


def test_the_values_in_dagsters_event_log_stay() -> None:
    """Events of earlier versions are read by them."""
    assert {one.name: one.value for one in WindowState} == {
        "COMPLETE": "complete",
        "OPEN": "open",
        "EMPTY": "proved empty",
        "BEFORE_START": "before the start that the universe gives",
        "BEFORE_LISTING": "before the gateway's oldest data",
        "ENDED": "after the end of the instrument",
        "NO_SESSION": "no session in it",
        "UNEXPLAINED": "unexplained",
    }


@pytest.mark.parametrize("timeframe", [Timeframe.M5, Timeframe.H1, Timeframe.D1])
def test_a_window_that_lacks_a_session_is_unexplained(
    store: BarStore, index: GapIndex, fill: Fill, timeframe: Timeframe
) -> None:
    """The others are complete, or open as long as a session of them has not closed."""
    series = series_of(timeframe)
    fill(series, START, date(2024, 3, 1), without=(date(2024, 2, 5),))
    found = index.windows(series, MONTHS, NOW)
    assert [one.state for one in found.values()] == [
        WindowState.COMPLETE,
        WindowState.UNEXPLAINED,
        WindowState.OPEN,
    ]
    assert sum(one.rows for one in found.values()) == store.rows(series)
    [gap] = index.series_gaps([series], NOW)[0].gaps
    assert found["2024-02"].unexplained == IntervalSet([gap.interval])
    assert found["2024-02"].why == "1 missing"
    assert not found["2024-01"].unexplained


def test_a_week_belongs_to_the_window_of_its_monday(index: GapIndex, fill: Fill) -> None:
    """Its bars are counted there only."""
    series = series_of(Timeframe.W1, start=date(2023, 12, 1))
    fill(series, date(2023, 12, 4), date(2024, 2, 26))
    windows = {str(one): (date(one, 1, 1), date(one + 1, 1, 1)) for one in (2023, 2024)}
    found = states(index, series, windows)
    assert found == {"2023": (WindowState.COMPLETE, 4), "2024": (WindowState.OPEN, 8)}


def test_a_failed_attempt_is_the_reason_of_a_window(
    store: BarStore, index: GapIndex, fill: Fill
) -> None:
    """With the time of the next request."""
    series = series_of()
    fill(series, START, date(2024, 3, 1), without=(date(2024, 2, 5),))
    store.ledger.attempts.record(
        *(series_key(series), Interval(utc(2024, 2, 5), utc(2024, 2, 6)), AttemptKind.PROBED),
        error="a second response is due",
        code=None,
        next_try_at=utc(2024, 3, 2),
        at=NOW,
    )
    found = index.windows(series, MONTHS, NOW)
    assert found["2024-02"].why == "1 unconfirmed, next request at 2024-03-02 00:00Z"


def test_windows_without_bars_have_the_state_that_explains_them(
    store: BarStore, index: GapIndex, fill: Fill
) -> None:
    """Before the start, before the gateway's oldest data, and where responses confirm it."""
    series = series_of(start=date(2024, 1, 1))
    fill(series, date(2024, 2, 1), date(2024, 3, 1))
    windows = {"2023-12": (date(2023, 12, 1), date(2024, 1, 1)), **MONTHS}
    before = states(index, series, windows)
    assert before["2023-12"] == (WindowState.BEFORE_START, 0)
    assert before["2024-01"] == (WindowState.UNEXPLAINED, 0)
    head = utc(2024, 2, 1, 14, 30)
    said = Statement(Interval(utc(2024, 1, 2), head), StatementKind.BEGINS, "1h", NOW, "a request")
    store.ledger.heads.record(1, "TRADES", GATEWAY, head=head, asked_at=NOW)
    store.ledger.statements.record("AAPL", GATEWAY, [said], NOW)
    assert states(index, series, windows)["2024-01"] == (WindowState.BEFORE_LISTING, 0)
    prove_empty(store, series, date(2024, 1, 1), date(2024, 2, 1))
    assert states(index, series, windows)["2024-01"] == (WindowState.EMPTY, 0)


@pytest.mark.parametrize(
    ("state", "rows", "alone", "with_bars"),
    [
        (WindowState.COMPLETE, 5, True, True),
        (WindowState.EMPTY, 0, True, True),
        (WindowState.OPEN, 0, False, False),
        (WindowState.OPEN, 1, True, True),
        (WindowState.BEFORE_START, 0, False, True),
        (WindowState.BEFORE_LISTING, 0, False, True),
        (WindowState.ENDED, 0, False, True),
        (WindowState.NO_SESSION, 0, False, True),
        (WindowState.UNEXPLAINED, 5, False, False),
    ],
)
def test_windows_that_no_response_explains_are_reported_once_there_are_bars(
    state: WindowState, rows: int, alone: bool, with_bars: bool
) -> None:
    """Nothing looks filled in a store without bars."""
    status = WindowStatus(Interval(NOW, NOW + timedelta(days=1)), state, rows, IntervalSet())
    assert status.is_reportable(has_bars=False) is alone
    assert status.is_reportable(has_bars=True) is with_bars


def test_a_gap_over_a_weekend_is_in_no_window_of_the_weekend(index: GapIndex, fill: Fill) -> None:
    """The days beside it lack bars; on the days between, no bar is expected."""
    series = series_of()
    fill(series, START, date(2024, 3, 1), without=(date(2024, 2, 2), date(2024, 2, 5)))
    [gap] = index.series_gaps([series], NOW)[0].gaps
    assert gap.sessions == 2
    days = {str(day): (date(2024, 2, day), date(2024, 2, day + 1)) for day in (1, 2, 3, 4, 5, 6)}
    assert [state for state, _ in states(index, series, days).values()] == [
        WindowState.COMPLETE,
        WindowState.UNEXPLAINED,
        WindowState.NO_SESSION,
        WindowState.NO_SESSION,
        WindowState.UNEXPLAINED,
        WindowState.COMPLETE,
    ]


@pytest.mark.parametrize("calendar", ["XNYS.RTH", "GATEWAY:America/New_York"])
def test_after_its_end_an_instrument_lacks_nothing(index: GapIndex, calendar: str) -> None:
    """Neither in the gap index nor in a window, whether its sessions are known or not."""
    instrument = replace(stock(calendar=calendar), start=START, end=date(2024, 1, 31))
    series = Series(instrument, Timeframe.H1)
    [gap] = index.series_gaps([series], NOW)[0].gaps
    assert gap.interval.end.date() <= date(2024, 2, 1)
    assert states(index, series, MONTHS) == {
        "2024-01": (WindowState.UNEXPLAINED, 0),
        "2024-02": (WindowState.ENDED, 0),
        "2024-03": (WindowState.ENDED, 0),
    }


def test_what_a_load_reports_counts_in_addition(index: GapIndex, fill: Fill) -> None:
    """What it left unexplained, and after an error everything."""
    series = series_of()
    fill(series, START, date(2024, 3, 1))
    found = index.windows(series, MONTHS, NOW)
    left = Interval(utc(2024, 2, 5, 14, 30), utc(2024, 2, 5, 21))
    after = after_load(found, SeriesReport(series, unexplained=IntervalSet([left])))
    assert [name for name, one in after.items() if not one.is_explained] == ["2024-02"]
    assert after["2024-02"].unexplained == IntervalSet([left])
    failed = after_load(found, SeriesReport(series, error=StoreError("saving", reason="no room")))
    assert {one.state for one in failed.values()} == {WindowState.UNEXPLAINED}
    assert after_load(found, SeriesReport(series)) == found


def test_windows_of_a_file_that_cannot_be_read_are_an_error(
    store: BarStore, index: GapIndex, fill: Fill
) -> None:
    """They have no status."""
    series = series_of(Timeframe.D1)
    fill(series, START, date(2024, 3, 1))
    [path] = store.layout.bar_files("AAPL", Timeframe.D1)
    path.write_bytes(b"junk")
    with pytest.raises(CorruptFileError):
        index.windows(series, MONTHS, NOW)
