"""Probing: where data begin, found by small requests, where the gateway does not say.

Not here: asking (``load.asking``), what is remembered (``load.ranges``), what is excused
(``load.facts``).

What a probe proves, and what it does not: bars show that the data are at least as old. Silence
about a year shows only that this year has no bar, and not even that by itself, since a request
that reaches past the gateway's oldest bar may be answered with nothing (grade C); so a stretch
counts as silent only when its newest month, its newest week and its first days, asked alone, are
silent too.
Silence says nothing about what is older: a hole of a year or more inside a history looks just so.
The search therefore looks beyond every silence that it meets, at growing distances, and its
result is told as what it is: the oldest bar that was found. Only stretches that were probed
themselves excuse a gap.
"""

from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from datetime import date, timedelta

from ktrdr_pipelines.core.timeframes import Timeframe

_YEAR, _MONTH, _WEEK = (
    (Timeframe.W1, "1 Y"),
    (Timeframe.D1, "1 M"),
    (Timeframe.D1, "1 W"),
)
"""What is requested back from the end of a year or month, in durations that IB's conservative table
allows."""

_FIRST_DAYS = timedelta(days=10)
"""How long a part at the start of a year or month is requested on its own: a year or a month back
from the end may begin a few days late, with the first whole week or after the date of the end."""

Ask = Callable[[Timeframe, date, str], Awaitable[date | None]]
"""Asks for bars that end before a session date, and gives the date of the oldest, or None."""


@dataclass(frozen=True, slots=True)
class Cell:
    """A calendar year or month, as session dates ``[first, end)``."""

    first: date
    end: date

    @property
    def is_year(self) -> bool:
        """Say whether it is longer than a month."""
        return (self.end - self.first).days > 31

    def __str__(self) -> str:
        return f"{self.first:%Y}" if self.is_year else f"{self.first:%Y-%m}"


def year_of(day: date) -> Cell:
    """Give the calendar year of a date."""
    return Cell(date(day.year, 1, 1), date(day.year + 1, 1, 1))


def month_of(day: date) -> Cell:
    """Give the calendar month of a date."""
    first = day.replace(day=1)
    return Cell(first, (first + timedelta(days=31)).replace(day=1))


async def oldest_in(ask: Ask, cell: Cell) -> date | None:
    """Give the oldest date found by asking for a stretch; None where it is proved silent.

    What comes may be older than the stretch: requests reach back further.
    """
    widths = (_YEAR, _MONTH, _WEEK) if cell.is_year else (_MONTH, _WEEK)
    found = None
    for timeframe, duration in widths:
        found = await ask(timeframe, cell.end, duration)
        if found is not None:
            break
    is_near_start = found is not None and cell.first < found <= cell.first + _FIRST_DAYS
    if found is not None and (cell.is_year or not is_near_start):
        return found
    first = await ask(Timeframe.D1, cell.first + _FIRST_DAYS, _MONTH[1])
    return found if first is None else first


@dataclass(slots=True)
class Search:
    """Looks for the oldest bar between a date that is wanted and one that is known to have bars.

    It takes a number of probes that grows with the logarithm of the years, once for every hole
    that it meets. ``silent`` are the stretches that were proved to have no bar.
    """

    ask: Ask
    floor: date
    oldest: date
    silent: dict[Cell, bool] = field(default_factory=dict)
    probes: int = 0

    async def run(self) -> date:
        """Give the date of the oldest bar that was found."""
        year = self.oldest.year
        while True:
            year = await self._bisect_years(year)
            older = await self._beyond(year)
            if older is None:
                break
            year = older
        return await self._bisect_months()

    async def _bisect_years(self, newest: int) -> int:
        """Give the oldest year with bars, as though there were no hole."""
        low, high = self.floor.year - 1, newest
        while high - low > 1:
            middle = (low + high) // 2
            found = await self._probe(Cell(date(middle, 1, 1), date(middle + 1, 1, 1)))
            if found is None:
                low = middle
            else:
                high = max(min(middle, found.year), low + 1)
        return high

    async def _beyond(self, year: int) -> int | None:
        """Look for bars behind the silence before a year, ever further, down to the floor."""
        for one in _further(year - 1, self.floor.year):
            found = await self._probe(Cell(date(one, 1, 1), date(one + 1, 1, 1)))
            if found is not None:
                return max(min(one, found.year), self.floor.year)
        return None

    async def _bisect_months(self) -> date:
        """Find the first month with bars in the oldest year that has some, and its first bar."""
        if self.oldest < self.floor:
            return self.oldest
        year, low, high = self.oldest.year, 0, self.oldest.month
        while high - low > 1:
            middle = (low + high) // 2
            found = await self._probe(month_of(date(year, middle, 1)))
            if found is None:
                low = middle
            else:
                high = max(middle if found.year == year else 1, low + 1)
        await self._probe(month_of(date(year, high, 1)))
        return self.oldest

    async def _probe(self, cell: Cell) -> date | None:
        """Ask for a stretch, unless it is known to be silent."""
        if self.silent.get(cell):
            return None
        self.probes += 1
        found = await oldest_in(self.ask, cell)
        self.silent[cell] = found is None
        if found is not None:
            self.oldest = min(self.oldest, found)
        return found


def _further(year: int, floor: int) -> Iterator[int]:
    """Give years before a year, one, two, four, eight... before it, and the floor last."""
    step = 1
    while year - step > floor:
        yield year - step
        step *= 2
    if year > floor:
        yield floor
