"""Probing for the start of data: few requests, and no claim without evidence."""

import asyncio
from dataclasses import dataclass, field
from datetime import date, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ktrdr_pipelines.domain.timeframes import Timeframe
from ktrdr_pipelines.sync.discovery.head_timestamps import (
    Cell,
    Search,
    month_of,
    oldest_in,
    year_of,
)
from tests.support.examples import examples

FLOOR, TODAY = date(1990, 1, 1), date(2024, 6, 3)
DAY = timedelta(days=1)


@dataclass
class History:
    """Bars on every weekday of some intervals; ``nothing_past_oldest`` as IB may respond."""

    intervals: list[tuple[date, date]]
    nothing_past_oldest: bool = False
    requests: list[tuple[Timeframe, date, str]] = field(default_factory=list)

    @property
    def oldest(self) -> date:
        return next(day for day in _days(*self.intervals[0]) if day.weekday() < 5)

    async def oldest_in_range(self, timeframe: Timeframe, end: date, duration: str) -> date | None:
        self.requests.append((timeframe, end, duration))
        count, unit = duration.split()
        assert count == "1"
        start = _after(end, unit)
        if self.nothing_past_oldest and start < self.oldest:
            return None
        for first, last in self.intervals:
            for day in _days(max(first, start), min(last, end)):
                if day.weekday() < 5:
                    return day
        return None


def _days(first: date, end: date) -> list[date]:
    return [first + n * DAY for n in range(max(0, min((end - first).days, 4)))]


def _after(end: date, unit: str) -> date:
    """Return where a duration begins: after the end's date a week, month or year earlier.

    For a year of weekly bars it is the first whole week.
    """
    if unit == "W":
        return end - 6 * DAY
    month = (end - DAY).replace(day=1) if unit == "M" else end
    start = month.replace(day=min(end.day, 28)) + DAY
    if unit == "M":
        return start if start < end else start - 31 * DAY
    start = start.replace(year=start.year - 1)
    return start + (-start.weekday() % 7) * DAY


def search(history: History) -> tuple[date, Search]:
    """Run a search; return the date that it found, and itself."""
    made = Search(history.oldest_in_range, FLOOR, TODAY)
    return asyncio.run(made.run()), made


@pytest.mark.parametrize("nothing_past_oldest", [False, True])
@pytest.mark.parametrize(
    "first",
    [date(1990, 1, 1), date(1997, 5, 15), date(2010, 12, 30), date(2012, 1, 2), date(2024, 5, 14)],
)
def test_the_first_bar_is_found_in_few_requests(first: date, nothing_past_oldest: bool) -> None:
    """In 35 years the first day is found, or its month where older requests return nothing."""
    history = History([(first, TODAY)], nothing_past_oldest)
    found, made = search(history)
    assert (found - first).days <= (31 if nothing_past_oldest else 0)
    assert found >= first
    assert len(history.requests) <= 48, "four for a year without bars"
    assert made.probes <= 20


@pytest.mark.parametrize("gap_years", [1, 2, 4])
def test_a_gap_of_years_is_not_taken_for_the_beginning(gap_years: int) -> None:
    """Bars before a gap are found, and only the gap's own years are recorded as empty."""
    gap = date(2015, 1, 1), date(2015 + gap_years, 1, 1)
    history = History([(date(1996, 3, 4), gap[0]), (gap[1], TODAY)])
    found, made = search(history)
    assert found == date(1996, 3, 4)
    empty = {cell for cell, is_empty in made.empty.items() if is_empty}
    for cell in empty:
        assert cell.end <= found.replace(day=1) or (gap[0] <= cell.first and cell.end <= gap[1])


def test_nothing_older_than_the_floor_is_requested() -> None:
    """No request is made for dates before the wanted start."""
    history = History([(date(1970, 1, 1), TODAY)])
    search(history)
    assert min(end for _, end, _ in history.requests) > FLOOR


def test_a_year_is_empty_only_if_its_newest_week_is() -> None:
    """A wide request may return no data because it reaches past the oldest bar."""
    history = History([(date(2010, 12, 28), TODAY)], nothing_past_oldest=True)
    empty = asyncio.run(oldest_in(history.oldest_in_range, year_of(date(2009, 5, 1))))
    assert empty is None
    assert [duration for _, _, duration in history.requests] == ["1 Y", "1 M", "1 W", "1 M"]
    history.intervals[0] = (date(2010, 12, 20), TODAY)
    found = asyncio.run(oldest_in(history.oldest_in_range, year_of(date(2010, 5, 1))))
    assert found is not None
    assert found.year == 2010


@given(
    first=st.dates(FLOOR, TODAY - 40 * DAY),
    joined_gaps=st.lists(st.tuples(st.integers(0, 12_000), st.integers(1, 1500)), max_size=4),
    nothing_past_oldest=st.booleans(),
)
@examples(60)
def test_whatever_the_history_nothing_false_is_claimed(
    first: date, joined_gaps: list[tuple[int, int]], nothing_past_oldest: bool
) -> None:
    """The found date has a bar, an empty interval has none, and the requests are limited."""
    intervals = [(first, TODAY)]
    for after, length in sorted(joined_gaps):
        start, end = intervals[-1]
        cut = start + after * DAY
        if cut + length * DAY < end - 31 * DAY and cut > start + 7 * DAY:
            intervals[-1:] = [(start, cut), (cut + length * DAY, end)]
    history = History(intervals, nothing_past_oldest)
    found, made = search(history)
    assert found == TODAY or any(low <= found < high for low, high in intervals)
    for cell, is_empty in made.empty.items():
        if is_empty and not nothing_past_oldest:
            assert not any(
                day.weekday() < 5 and cell.first <= day < cell.end
                for low, high in intervals
                for day in _days(max(low, cell.first), min(high, cell.end))
            ), cell
    assert made.probes <= 20 * (1 + len(intervals))


def test_cells_are_calendar_years_and_months() -> None:
    """A cell begins and ends on the first of a month."""
    assert year_of(date(2024, 2, 29)) == Cell(date(2024, 1, 1), date(2025, 1, 1))
    assert month_of(date(2024, 2, 29)) == Cell(date(2024, 2, 1), date(2024, 3, 1))
    assert month_of(date(2023, 12, 31)) == Cell(date(2023, 12, 1), date(2024, 1, 1))
    assert [str(cell) for cell in (year_of(TODAY), month_of(TODAY))] == ["2024", "2024-06"]
    assert [cell.is_year for cell in (year_of(TODAY), month_of(TODAY))] == [True, False]
