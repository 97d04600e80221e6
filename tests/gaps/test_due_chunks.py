"""Tails and gaps: each bar that is due belongs to exactly one of them."""

from collections.abc import Iterable
from datetime import UTC, date, datetime, timedelta

import pytest

from ktrdr_pipelines.domain.calendars.registry import calendar_named
from ktrdr_pipelines.domain.calendars.sessions import interval_between
from ktrdr_pipelines.domain.instruments import Series
from ktrdr_pipelines.domain.intervals import Interval, IntervalSet
from ktrdr_pipelines.domain.planning.gaps import Gap, GapReason
from ktrdr_pipelines.domain.timeframes import Timeframe
from ktrdr_pipelines.domain.universe.universe import parse_universe
from ktrdr_pipelines.gaps.due_chunks import (
    backlog_of,
    due_tails,
    due_to_fill,
    is_behind,
    measured_backlog,
)
from ktrdr_pipelines.gaps.index import SeriesGaps
from ktrdr_pipelines.store.ledger.attempts import Attempt, AttemptKind

NOW = datetime(2024, 6, 7, 22, tzinfo=UTC)
UNIVERSE = parse_universe("symbols: {AAPL: {}, MSFT: {backfill: manual}}", "here")


def series(symbol: str = "AAPL", timeframe: str = "1h") -> Series:
    """Return a series of the universe."""
    return Series(UNIVERSE.instrument(symbol), Timeframe(timeframe))


def session(day: str, one: Series) -> Interval:
    """Return the timestamps of a session date."""
    first = date.fromisoformat(day)
    calendar = calendar_named(one.instrument.calendar)
    return interval_between(calendar, one.timeframe, first, first + timedelta(days=1))


def found(
    one: Series, *days: str, until: str | None = "2024-06-06", sessions: int = 1, **other: object
) -> SeriesGaps:
    """Return the gaps of a series that lacks sessions and is covered to the end of a date."""
    gaps = tuple(Gap(session(day, one), sessions, 7 * sessions, GapReason.MISSING) for day in days)
    covered = session(until, one).end if until else None
    return SeriesGaps(one, gaps, covered_until=covered, **other)  # type: ignore[arg-type]


def tails_of(*given: SeriesGaps) -> dict[str, IntervalSet]:
    """Return the tails by series."""
    return {str(tail.series): tail.intervals for tail in due_tails(given, NOW)}


def fills_of(*given: SeriesGaps) -> dict[str, IntervalSet]:
    """Return what gap runs would request, by series."""
    return {str(due.series): due.intervals for due in due_to_fill(given, NOW)}


def set_of(parts: Iterable[Interval]) -> IntervalSet:
    """Return a set of intervals."""
    return IntervalSet(parts)


def test_newest_session_is_a_tail_and_inner_ones_are_gaps() -> None:
    """One session after the newest bar is the tail; the rest is for gap runs."""
    one = series()
    given = found(one, "2023-03-01", "2024-06-07")
    assert tails_of(given) == {"AAPL 1h": set_of([session("2024-06-07", one)])}
    assert fills_of(given) == {"AAPL 1h": set_of([session("2023-03-01", one)])}


def test_bars_of_the_open_session_are_a_tail() -> None:
    """The open session is requested together with the session before it."""
    one = series()
    waiting = IntervalSet([session("2024-06-10", one)])
    given = found(one, "2024-06-07", waiting=waiting)
    assert tails_of(given)["AAPL 1h"] == waiting | set_of([session("2024-06-07", one)])
    assert fills_of(given) == {}


def test_end_of_a_session_is_requested_at_growing_intervals() -> None:
    """Up to now always; after a close at 1, 2, 4, ... minutes, until it is a gap."""
    one = series("AAPL", "1m")
    close = session("2024-06-07", one).end

    def is_due(now: datetime, end: datetime) -> bool:
        quiet = IntervalSet([Interval(close - timedelta(minutes=3), end)])
        return bool(due_tails([found(one, waiting=quiet)], now))

    minutes = [n for n in range(30) if is_due(close + timedelta(minutes=n, seconds=7), close)]
    assert minutes == [0, 1, 2, 4, 8, 16]
    last = close - timedelta(seconds=30)
    assert is_due(last, last - timedelta(seconds=5))


@pytest.mark.parametrize("symbol", ["AAPL", "MSFT"])
def test_series_that_is_behind_is_filled_by_gap_runs_alone(symbol: str) -> None:
    """A tail that jumped ahead would leave a gap that is never filled for a manual symbol."""
    one = series(symbol)
    waiting = IntervalSet([session("2024-06-10", one)])
    given = found(one, "2024-06-07", until="2024-03-08", sessions=62, waiting=waiting)
    assert is_behind(given)
    assert tails_of(given) == {}
    assert fills_of(given) == {f"{symbol} 1h": set_of([session("2024-06-07", one)])}


def test_history_of_a_manual_symbol_is_left_to_the_user() -> None:
    """Only its tail is requested: neither inner gaps nor the history of an empty series."""
    one = series("MSFT")
    given = found(one, "2023-03-01", "2024-06-07")
    assert tails_of(given) == {"MSFT 1h": set_of([session("2024-06-07", one)])}
    assert fills_of(given) == {}
    assert backlog_of([given]) == []
    empty = found(one, "2023-03-01", until=None, sessions=300)
    assert (tails_of(empty), fills_of(empty)) == ({}, {})


def test_manual_symbol_is_filled_from_its_mark_on() -> None:
    """Gaps are filled newest first, so older ones behind the newest bar are due too."""
    one = series("MSFT")
    mark = session("2024-01-31", one).end
    history, *later = ("2024-01-05", "2024-02-01", "2024-05-02")
    given = found(one, history, *later, "2024-06-07", fresh_from=mark)
    assert fills_of(given) == {"MSFT 1h": set_of(session(day, one) for day in later)}
    assert tails_of(given) == {"MSFT 1h": set_of([session("2024-06-07", one)])}
    assert backlog_of([given]) == [(one, fills_of(given)["MSFT 1h"])]
    assert measured_backlog([given]).bars == 14


def test_gap_of_a_manual_symbol_is_cut_at_its_mark() -> None:
    """A gap that reaches over the mark is due from the mark on."""
    one = series("MSFT")
    day = session("2024-03-05", one)
    mark = day.start + timedelta(hours=3)
    given = found(one, "2024-03-05", fresh_from=mark)
    assert fills_of(given) == {"MSFT 1h": set_of([Interval(mark, day.end)])}


def test_manual_symbol_without_bars_is_left_to_the_user() -> None:
    """A mark alone makes nothing due."""
    one = series("MSFT")
    mark = session("2024-01-31", one).end
    assert fills_of(found(one, "2024-02-01", until=None, fresh_from=mark)) == {}


def test_failed_attempts_become_due_by_real_time() -> None:
    """Market time decides what has closed, not when to retry."""
    one = series()
    gap = session("2024-06-07", one)
    next_try_at = datetime(2030, 1, 1, tzinfo=UTC)
    attempt = Attempt(
        "AAPL|1h", gap, AttemptKind.ERROR, "no answer", None, 1, NOW, NOW, next_try_at
    )
    given = found(one, "2024-06-07", attempts=(attempt,))
    assert due_tails([given], NOW, real_now=next_try_at - timedelta(seconds=1)) == []
    assert [tail.series for tail in due_tails([given], NOW, real_now=next_try_at)] == [one]


def test_empty_series_has_no_tail() -> None:
    """All of it is a gap."""
    one = series()
    empty = found(one, "2023-03-01", until=None, sessions=300)
    assert tails_of(empty) == {}
    assert set(fills_of(empty)) == {"AAPL 1h"}


@pytest.mark.parametrize("kind", [AttemptKind.ERROR, AttemptKind.BLOCKED])
def test_tail_after_a_failed_attempt_is_deferred(kind: AttemptKind) -> None:
    """Whether the session failed or the whole series is blocked."""
    one = series()
    attempt = Attempt(
        "AAPL|1h", session("2024-06-07", one), kind, "no", None, 1, NOW, NOW,
        NOW + timedelta(minutes=5),
    )  # fmt: skip
    given = found(one, "2024-06-07", attempts=(attempt,))
    assert tails_of(given) == {}
    later = due_tails([given], NOW + timedelta(minutes=5))
    assert [str(tail.series) for tail in later] == ["AAPL 1h"]


def test_longest_timeframes_come_first_and_newest_gaps_before_older_ones() -> None:
    """Days before hours before minutes; within them, the newest end first."""
    days, hours = series(timeframe="1d"), series(timeframe="1h")
    other = Series(parse_universe("symbols: {SPY: {}}", "here").instrument("SPY"), Timeframe.D1)
    given = [
        found(hours, "2024-06-03"),
        found(days, "2022-06-03"),
        found(other, "2024-06-03"),
    ]
    assert [str(due.series) for due in due_to_fill(given, NOW)] == ["SPY 1d", "AAPL 1d", "AAPL 1h"]
