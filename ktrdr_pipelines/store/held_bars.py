"""The bars that a store holds of a symbol, as what responses are compared with.

Not here: the comparison itself (``domain.price_basis``), what follows from one
(``sync.engine.basis_check``).
"""

from collections.abc import Hashable, Iterator
from datetime import UTC, date, datetime, timedelta

import numpy as np
import pyarrow as pa

from ktrdr_pipelines.domain.bars import UNCONFIRMED, basis_of, micros, moment, timestamps
from ktrdr_pipelines.domain.calendars.sessions import SessionCalendar, midnight, monday_of
from ktrdr_pipelines.domain.coverage import Coverage
from ktrdr_pipelines.domain.instruments import Series
from ktrdr_pipelines.domain.intervals import Interval
from ktrdr_pipelines.domain.plausibility import DisagreementKind
from ktrdr_pipelines.domain.price_basis import BasisComparison, BasisVerdict, compare_basis
from ktrdr_pipelines.domain.timeframes import Timeframe
from ktrdr_pipelines.store.bars.bar_store import BarStore
from ktrdr_pipelines.store.ledger.file_index import IndexedFile
from ktrdr_pipelines.store.ledger.ledger import series_key

_DAY, _SOON, _INSTANT = timedelta(days=1), timedelta(days=14), timedelta(microseconds=1)
_LONG_AGO = datetime(1970, 1, 1, tzinfo=UTC)


class HeldBars:
    """The held bars of all symbols whose basis is known.

    Args:
        store: holds them.
    """

    def __init__(self, store: BarStore) -> None:
        self._store = store
        self._known: tuple[Hashable, Series, Coverage] | None = None

    def compared(self, series: Series, bars: pa.Table) -> BasisComparison:
        """Return how the bars of a response compare with the held ones on today's basis.

        The first of several intraday bars may be clipped, and is left out; so are bars that are
        known to be at other prices than those after them.

        Args:
            series: the series of the bars.
            bars: all bars of a response, at least one.
        """
        keys = timestamps(bars)
        if not self._coverage(series).bars.clip(Interval(moment(keys[0]), moment(keys[-1] + 1))):
            return BasisComparison(BasisVerdict.UNKNOWN)
        if series.timeframe.is_intraday and bars.num_rows > 1:
            bars = bars.slice(1)
        first = int(timestamps(bars).searchsorted(micros(self._comparable_from(series))))
        bars = bars.slice(first)
        if not bars.num_rows:
            return BasisComparison(BasisVerdict.UNKNOWN)
        keys = timestamps(bars)
        around = Interval(moment(keys[0]), moment(keys[-1]) + _INSTANT)
        if not self._coverage(series).bars.clip(around):
            return BasisComparison(BasisVerdict.UNKNOWN)
        raw = self._store.read_raw(series, around)
        raw = raw.filter(pa.array(basis_of(raw) != UNCONFIRMED))
        held = self._store.bases.on_todays(series.symbol, raw)
        times = np.ones(held.num_rows)
        stored, now = (one["close"].to_numpy() for one in (raw, held))
        np.divide(now, stored, out=times, where=stored != 0)
        return compare_basis(held, bars, times)

    def newest(self, symbol: str) -> dict[Timeframe, date]:
        """Return the newest session date of each timeframe that has bars, best to compare first.

        Daily bars are, then the longest shorter ones: few bars say enough then.
        """
        held = dict(self._newest_days(symbol))
        order = [Timeframe.H4, Timeframe.H1, Timeframe.M30, Timeframe.M15, Timeframe.M5]
        return {
            one: held[one]
            for one in (Timeframe.D1, *order, Timeframe.M1, Timeframe.W1)
            if one in held
        }

    def includes_newest(
        self, series: Series, calendar: SessionCalendar, found: BasisComparison
    ) -> bool:
        """Return whether the newest held bars of a series were among those compared."""
        day = dict(self._newest_days(series.symbol)).get(series.timeframe)
        if day is None or found.last is None:
            return False
        if series.timeframe is Timeframe.W1:
            return found.last >= midnight(monday_of(day))
        is_intraday = series.timeframe.is_intraday
        last = calendar.day_of(found.last) if is_intraday else found.last.date()
        return last >= day

    def session_after(self, symbol: str, calendar: SessionCalendar) -> date | None:
        """Return the first session after all held bars; None without any."""
        days = [
            monday_of(day) + 4 * _DAY if timeframe is Timeframe.W1 else day
            for timeframe, day in self._newest_days(symbol)
        ]
        if not days:
            return None
        after = calendar.sessions(max(days) + _DAY, max(days) + _SOON)
        return after[0].day if after else None

    def on_their_basis_until(self, series: Series, found: BasisComparison) -> datetime:
        """Return when the newest request was sent that is known to be on the basis of held bars.

        A basis was in force until then for certain if compared bars show another one now: the
        files record when it was last confirmed, and when bars were requested that are compared.
        """
        times = [_LONG_AGO]
        compared = Interval(found.first or _LONG_AGO, (found.last or _LONG_AGO) + _INSTANT)
        for timeframe in self._store.layout.timeframes_of(series.symbol):
            for row in self._store.files.of_symbol(series.symbol, timeframe).values():
                if row.basis.confirmed_at is not None:
                    times.append(row.basis.confirmed_at)
                if timeframe is series.timeframe:
                    presumed = row.basis.presumed
                    times += [
                        one.fetched_from for one in presumed if one.interval.overlaps(compared)
                    ]
        return max(times)

    def _coverage(self, series: Series) -> Coverage:
        """Return the coverage of a series, read again once anything was recorded in the ledger.

        Whatever saves bars records the file: asking that is cheaper than the files' states.
        """
        version = self._store.ledger.version()
        if self._known is None or self._known[:2] != (version, series):
            self._known = version, series, self._store.known_coverage(series)
        return self._known[2]

    def _comparable_from(self, series: Series) -> datetime:
        """Return from which bar on no bar is known to be at other prices than those after it."""
        known = self._store.ledger.disagreements.of(series_key(series))
        ends = (
            one.first if one.kind is DisagreementKind.UNIT else one.last + _INSTANT for one in known
        )
        return max(ends, default=_LONG_AGO)

    def _newest_days(self, symbol: str) -> Iterator[tuple[Timeframe, date]]:
        """Yield each timeframe with bars on a known basis, and the newest session date of these."""
        for timeframe in self._store.layout.timeframes_of(symbol):
            rows = self._store.files.of_symbol(symbol, timeframe).values()
            days = [day for row in rows if (day := _newest_day(row)) is not None]
            if days:
                yield timeframe, max(days)


def _newest_day(row: IndexedFile) -> date | None:
    """Return the newest session date of a file that has bars on a known basis."""
    days: list[date] = row.session_arrays[0].astype(object).tolist()
    unconfirmed = row.basis.unconfirmed.bounds
    if unconfirmed is not None:
        known = [one.end for one, number in row.basis.intervals if number != UNCONFIRMED]
        newest = max(known, default=_LONG_AGO)
        if newest < unconfirmed.end:
            days = [day for day in days if midnight(day) < newest]
    return max(days, default=None)
