"""The gap book: what every series holds and lacks, and why, from files and ledger alone.

It asks no gateway, and opens only files that changed unseen. What it found out of a series is kept
in the process and counts as long as the files' fingerprints, the calendar and all that is known of
the series stay the same and no session closes, so looking again costs a stat of each file.

Not here: what is found out of one series (``load.gappage``), what is read of it
(``load.holdings``, ``load.standings``), the decisions (``core.completeness``, ``core.suspects``),
how gaps are shown or filled.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import date, datetime
from functools import lru_cache
from pathlib import Path

import numpy as np

from ktrdr_pipelines.core.calendars import Calendars
from ktrdr_pipelines.core.completeness import Completeness, completeness, due_places
from ktrdr_pipelines.core.instruments import Series
from ktrdr_pipelines.core.sessions import SessionCalendar
from ktrdr_pipelines.core.spanarrays import span_arrays
from ktrdr_pipelines.core.suspects import have_bars
from ktrdr_pipelines.errors import StoreError
from ktrdr_pipelines.load.calendars import open_calendars
from ktrdr_pipelines.load.gappage import Page, SeriesGaps, of_unknown_sessions, written
from ktrdr_pipelines.load.holdings import Holding, Holdings
from ktrdr_pipelines.load.standings import Ledgered, last_stamp, standing_of, waiting_of
from ktrdr_pipelines.store.layout import StoreLayout
from ktrdr_pipelines.store.ledger import open_ledger, series_key
from ktrdr_pipelines.store.parquet import BarStore

__all__ = ["GapBook", "Memory", "SeriesGaps", "memory_of", "open_gapbook"]


@dataclass(slots=True)
class Memory:
    """What a process keeps of one store between looks."""

    pages: dict[str, Page] = field(default_factory=dict)
    holdings: dict[str, Holding] = field(default_factory=dict)
    calendars: dict[str, SessionCalendar] = field(default_factory=dict)


@lru_cache(maxsize=8)
def memory_of(root: Path) -> Memory:
    """Give the memory that all gap books of a store share in this process."""
    _ = root
    return Memory()


def open_gapbook(layout: StoreLayout, gateway: str) -> "GapBook":
    """Open the gap book of a store as its ledger stands now.

    Args:
        layout: the store.
        gateway: whose oldest data count, as ``host:port``.
    """
    ledger = open_ledger(layout)
    return GapBook(
        BarStore(layout, ledger), open_calendars(ledger), gateway, memory=memory_of(layout.root)
    )


class GapBook:
    """Looks through one store.

    Args:
        store: files and ledger.
        calendars: which sessions are expected.
        gateway: whose oldest data count.
        memory: what is kept between looks; its own if not given.
    """

    def __init__(
        self, store: BarStore, calendars: Calendars, gateway: str, *, memory: Memory | None = None
    ) -> None:
        self.store = store
        self.calendars = calendars
        self._gateway = gateway
        self._memory = memory or Memory()

    def __repr__(self) -> str:
        return f"GapBook({self.store.layout.root}, {len(self._memory.pages)} series known)"

    def look(self, series: Iterable[Series], now: datetime) -> list[SeriesGaps]:
        """Say how each series stands.

        A file that cannot be read is an error of its series alone.

        Raises:
            StoreError: the ledger cannot be read.
        """
        wanted = list(series)
        calendars = {one: self._calendar(one) for one in wanted}
        holdings = Holdings(self.store, self._memory.holdings).of(calendars)
        facts = Ledgered(self.store, self._gateway)
        oldest = self._oldest_days(wanted, holdings, facts)
        return [
            self._look(
                one, calendars[one], holdings[one], facts, now=now, oldest=oldest.get(one.symbol)
            )
            for one in wanted
        ]

    def _oldest_days(
        self,
        wanted: Iterable[Series],
        known: Mapping[Series, "Holding | StoreError"],
        facts: Ledgered,
    ) -> dict[str, date]:
        """Return the oldest session date that is held of symbols, over all their timeframes.

        Only of symbols whose beginning was stated: an older bar of any timeframe refutes that.
        """
        instruments = {one.symbol: one.instrument for one in wanted if facts.may_begin(one.symbol)}
        others = {
            series: self._calendar(series)
            for symbol, instrument in instruments.items()
            for timeframe in self.store.layout.timeframes_of(symbol)
            if (series := Series(instrument, timeframe)) not in known
        }
        found = {**known, **Holdings(self.store, self._memory.holdings).of(others)}
        oldest: dict[str, date] = {}
        for series, holding in found.items():
            if series.symbol in instruments and not isinstance(holding, StoreError):
                days = [day for day in (oldest.get(series.symbol), holding.first) if day]
                if days:
                    oldest[series.symbol] = min(days)
        return oldest

    def completeness(self, series: Series, now: datetime) -> Completeness:
        """Count have, expected, settled, explained and unexplained bars, session by session.

        Told are the sessions from the wanted start, or from the oldest bar if that is older, to
        the last that has closed.

        Raises:
            StoreError: its files or the ledger cannot be read.
        """
        calendar = self._calendar(series)
        (holding,) = Holdings(self.store, self._memory.holdings).of({series: calendar}).values()
        if isinstance(holding, StoreError):
            raise holding
        spans = span_arrays(calendar, series.timeframe)
        facts = Ledgered(self.store, self._gateway)
        oldest_day = self._oldest_days([series], {series: holding}, facts).get(series.symbol)
        known = facts.of(series, calendar, holding, oldest_day)
        standing = standing_of(series, calendar, holding, known, now=now)
        oldest = standing.oldest_bar if standing.oldest_bar is not None else standing.wanted_from
        low = int(np.searchsorted(spans.spans.ends, min(oldest, standing.wanted_from), "right"))
        chosen = spans.slice(low, max(low, due_places(spans, standing, now)[1]))
        days, rows = self._sessions(series)
        return completeness(
            chosen,
            replace(standing, suspects=_moved(standing.suspects, low)),
            have=have_bars(chosen, days, rows),
            empty=holding.empty(now),
            now=now,
        )

    def _sessions(self, series: Series) -> tuple[np.ndarray, np.ndarray]:
        found = self.store.rows_per_session(series)
        return np.array(list(found), "datetime64[D]"), np.array(list(found.values()), np.int64)

    def _calendar(self, series: Series) -> SessionCalendar:
        """Give the calendar of a series: the object that was used before, where it is the same.

        It is whole, whenever the series ends, so that all series of one market share its arrays.
        """
        calendar = self.calendars.of(replace(series.instrument, end=None))
        key = self.calendars.key_of(series.instrument)
        kept = self._memory.calendars.setdefault(key, calendar)
        if kept is not calendar and not kept.is_same(calendar):
            self._memory.calendars[key] = kept = calendar
        return kept

    def _look(
        self,
        series: Series,
        calendar: SessionCalendar,
        holding: "Holding | StoreError",
        facts: Ledgered,
        *,
        now: datetime,
        oldest: date | None,
    ) -> SeriesGaps:
        if isinstance(holding, StoreError):
            return SeriesGaps(series, error=holding)
        key, known = series_key(series), facts.of(series, calendar, holding, oldest)
        if calendar.known is None:
            return of_unknown_sessions(series, calendar, holding, known, now=now)
        page = self._memory.pages.get(key)
        if page is None or not page.holds(series, holding, known, now=now):
            page = written(series, calendar, holding, known, now=now)
            self._memory.pages[key] = page
        spans = span_arrays(calendar, series.timeframe)
        until = last_stamp(series, calendar)
        waiting = waiting_of(spans, holding.settled(now), now, until=until)
        return replace(page.found, waiting=waiting) if waiting else page.found


def _moved(places: np.ndarray | None, low: int) -> np.ndarray | None:
    return None if places is None else places - low
