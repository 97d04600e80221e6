"""What the store holds and lacks, series by series, from files and ledger alone: no gateway.

Not here: how it is shown (``cli.status``), what a load would ask (``core.plan``).
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from pathlib import Path

from ktrdr_pipelines.core.coverage import Coverage
from ktrdr_pipelines.core.gaps import due_gaps, first_stamp_of, is_closed
from ktrdr_pipelines.core.instruments import Series
from ktrdr_pipelines.core.intervals import Interval, IntervalSet, between
from ktrdr_pipelines.core.sessions import SessionCalendar, expected_spans
from ktrdr_pipelines.errors import StoreError
from ktrdr_pipelines.ib.config import GatewayConfig
from ktrdr_pipelines.load.calendars import open_calendars
from ktrdr_pipelines.load.contracts import known_contract
from ktrdr_pipelines.load.modes import first_stamp
from ktrdr_pipelines.load.ranges import RangeDiscovery
from ktrdr_pipelines.settings import Settings
from ktrdr_pipelines.store.attempts import Attempt, AttemptKind
from ktrdr_pipelines.store.layout import StoreLayout
from ktrdr_pipelines.store.ledger import Ledger, series_key
from ktrdr_pipelines.store.parquet import BarStore, read_footer
from ktrdr_pipelines.universe import Universe

_DAYS_AHEAD = timedelta(days=8)


@dataclass(frozen=True, slots=True)
class SeriesState:
    """One series as it stands.

    ``settled_until`` is the end of its newest settled stretch, on the stamp axis; ``gaps`` is what
    should be there by now and is neither settled nor excused; ``error`` says why nothing else
    could be learned.
    """

    series: Series
    rows: int = 0
    first: date | None = None
    last: date | None = None
    settled_until: datetime | None = None
    gaps: IntervalSet = field(default_factory=IntervalSet)
    attempts: tuple[Attempt, ...] = ()
    error: StoreError | None = None

    @property
    def is_blocked(self) -> bool:
        """Say whether the gateway has refused some of it for want of a permission."""
        return any(attempt.kind is AttemptKind.BLOCKED for attempt in self.attempts)


@dataclass(frozen=True, slots=True)
class Stranger:
    """Bars on disk of a series that the universe does not name."""

    symbol: str
    timeframe: str
    rows: int


class Survey:
    """Looks through one store.

    Args:
        settings: whose gateway's oldest data count.
        layout: the store.
        now: what is due is due by then.
    """

    def __init__(self, settings: Settings, layout: StoreLayout, now: datetime) -> None:
        self._layout = layout
        self._now = now
        self._ledger = Ledger(layout.ledger)
        self._store = BarStore(layout, self._ledger)
        self.calendars = open_calendars(self._ledger)
        self._ranges = RangeDiscovery(self._ledger, GatewayConfig.from_settings(settings).gateway)

    def states(self, universe: Universe) -> list[SeriesState]:
        """Give the state of every series of the universe, and of others of its symbols."""
        listed = universe.series()
        extra = (
            Series(universe.instruments[symbol], timeframe)
            for symbol, timeframe in self._store.series_on_disk()
            if symbol in universe.instruments
        )
        return [self.state(series) for series in dict.fromkeys((*listed, *extra))]

    def state(self, series: Series) -> SeriesState:
        """Give the state of one series."""
        try:
            coverage = self._store.coverage(series)
            days = list(self._store.rows_per_session(series))
            settled = coverage.settled(self._now).hull
            return SeriesState(
                series=series,
                rows=self._store.rows(series),
                first=days[0] if days else None,
                last=days[-1] if days else None,
                settled_until=settled.end if settled else None,
                gaps=self._gaps(series, coverage),
                attempts=tuple(self._ledger.attempts(series_key(series))),
            )
        except StoreError as error:
            return SeriesState(series, error=error)

    def strangers(self, universe: Universe) -> Iterator[Stranger]:
        """Give the series on disk whose symbol the universe does not name."""
        for symbol, timeframe in self._store.series_on_disk():
            if symbol not in universe.instruments:
                files = self._layout.bar_files(symbol, timeframe)
                yield Stranger(symbol, timeframe, sum(map(_rows, files)))

    def _gaps(self, series: Series, coverage: Coverage) -> IntervalSet:
        """Give what should be there by now; a session that is still open is nobody's fault."""
        calendar, timeframe = self.calendars.of(series.instrument), series.timeframe
        wanted = between(self._first_stamp(series, calendar), self._now + _DAYS_AHEAD)
        gaps = due_gaps(
            calendar,
            timeframe,
            wanted=IntervalSet([wanted] if wanted else []),
            settled=coverage.settled(self._now),
            now=self._now,
        )
        around = Interval(self._now - _DAYS_AHEAD, self._now + _DAYS_AHEAD)
        spans = expected_spans(calendar, timeframe, around)
        return gaps - IntervalSet(
            span.stamps for span in spans if not is_closed(span, timeframe, self._now)
        )

    def _first_stamp(self, series: Series, calendar: SessionCalendar) -> datetime:
        """Give where the universe begins to want bars, or the gateway to have them."""
        first = first_stamp(series, calendar)
        contract_id = known_contract(self._store, series)
        head = contract_id and self._ranges.known_head(series.instrument, contract_id)
        return max(first, first_stamp_of(calendar, series.timeframe, head)) if head else first


def _rows(path: Path) -> int:
    try:
        return read_footer(path).rows
    except StoreError:
        return 0
