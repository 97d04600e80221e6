"""The desk of one series: the facts, the asking, the saving and the state that its cases share.

Not here: what a case does (``load.cases``), who works on which (``load.work``).
"""

from dataclasses import dataclass, replace
from datetime import date, datetime
from pathlib import Path

import pyarrow as pa

from ktrdr_pipelines.core.calendars import Calendars
from ktrdr_pipelines.core.coverage import Coverage
from ktrdr_pipelines.core.gaps import is_closed
from ktrdr_pipelines.core.instruments import Identity
from ktrdr_pipelines.core.intervals import Interval, IntervalSet
from ktrdr_pipelines.core.plan import Need
from ktrdr_pipelines.core.sessions import expected_spans
from ktrdr_pipelines.core.timeframes import Timeframe
from ktrdr_pipelines.errors import GatewayError
from ktrdr_pipelines.load.asking import Asking
from ktrdr_pipelines.load.claims import Claimant
from ktrdr_pipelines.load.commits import Commits
from ktrdr_pipelines.load.facts import SeriesFacts, of_open_session
from ktrdr_pipelines.load.given import Given
from ktrdr_pipelines.load.keeper import SourceKeeper
from ktrdr_pipelines.load.life import LifeSigns
from ktrdr_pipelines.load.modes import Manner
from ktrdr_pipelines.load.probing import Cell, month_of, year_of
from ktrdr_pipelines.load.ranges import RangeDiscovery
from ktrdr_pipelines.load.reports import Progress
from ktrdr_pipelines.load.schedules import Schedules
from ktrdr_pipelines.load.tries import Tries
from ktrdr_pipelines.load.widths import Widths
from ktrdr_pipelines.store.ledger import series_key
from ktrdr_pipelines.store.mirror import Fingerprint, fingerprint
from ktrdr_pipelines.store.parquet import BarStore, SaveResult


@dataclass(frozen=True, slots=True)
class Means:
    """What all series of one run share: sessions, where to ask, where to save, whom to tell."""

    keeper: SourceKeeper
    store: BarStore
    schedules: Schedules
    claimant: Claimant
    ranges: RangeDiscovery
    life: LifeSigns
    widths: Widths
    progress: Progress

    @property
    def calendars(self) -> Calendars:
        """The book of calendars as it stands now."""
        return self.schedules.calendars


class Desk:
    """What the cases of one series in one run have in common."""

    def __init__(
        self, means: Means, facts: SeriesFacts, identity: Identity, manner: Manner
    ) -> None:
        self.means = means
        self.facts = facts
        self.series = facts.series
        self.identity = identity
        self._is_refresh = manner.refresh
        self.stop: GatewayError | None = None
        self.is_dead = False
        self.failures_in_a_row = 0
        self.unproved = IntervalSet()
        self._given = Given()
        self._seen: dict[Path, Fingerprint] = {}
        self.asking = Asking(
            means.keeper,
            means.store.ledger,
            self.series,
            contract_id=identity.contract_id,
            manner=manner,
            note=self.note,
        )
        self.tries = Tries(means.store.ledger, self.series, means.keeper.patience.clock)
        self.commits = Commits(
            save=self._save,
            release=lambda stretches: means.claimant.release(self.series, stretches),
            saved=lambda: means.progress.saved(self.series),
        )

    @property
    def is_over(self) -> bool:
        """Say whether more asking is vain."""
        return self.is_dead or self.stop is not None

    def need(self, within: Interval | None = None, *, everything: bool = False) -> Need:
        """State wants and facts as they stand, of all or of one stretch."""
        keeper = self.means.keeper
        market_now = keeper.patience.market_clock()
        need = self.facts.need(keeper.now(), market_now, within, everything=everything)
        most = self.means.widths.most(self.series.timeframe)
        return need if most is None else replace(need, most_sessions=most)

    def claim(self, stamps: Interval) -> bool:
        """Try to claim a stretch, and learn what others have saved of it by then."""
        now = self.means.keeper.patience.clock()
        if not self.means.claimant.claim(self.series, stamps, now):
            return False
        self.learn_saved()
        return True

    def learn_saved(self) -> None:
        """Take in what is settled on disk, by whomever, where a file has changed."""
        layout = self.means.store.layout
        paths = layout.bar_files(self.series.symbol, self.series.timeframe)
        current = {path: fingerprint(path) for path in paths}
        if current == self._seen:
            return
        self._seen = current
        saved = self.means.store.coverage(self.series)
        self.facts.learn(saved, proof_now=self.means.keeper.patience.market_clock())

    async def learn_listing(self, silent: Interval | None = None) -> None:
        """Excuse what lies before the start of the gateway's data.

        Where the gateway cannot say it, or says what held bars contradict, the year (or month) of
        a stretch that was just silent is probed.
        """
        head = await self._head()
        self.facts.excuse_before(head)
        if silent is not None and (head is None or self.facts.contradicts(head)):
            await self._probe_around(silent)

    async def _probe_around(self, silent: Interval) -> None:
        """Excuse the year or the month of a stretch if it has no bar, and older ones are unknown.

        Only years and months that end before the oldest bar are probed: a silence behind it is no
        matter of where data begin.
        """
        bars = self.facts.bars.hull
        if bars is None:
            return
        (oldest, _), (_, newest) = self.facts.days_of(bars), self.facts.days_of(silent)
        cells = (year_of(newest), month_of(newest))
        for cell in cells if self.series.timeframe.is_intraday else cells[:1]:
            if cell.end <= oldest and await self._is_silent(cell):
                self.facts.excuse_silence(cell.first, cell.end)
                return

    async def _is_silent(self, cell: Cell) -> bool:
        async def ask(timeframe: Timeframe, end: date, duration: str) -> date | None:
            ends_at = self.facts.calendar.day_starts_at(end)
            return await self.asking.oldest(timeframe, ends_at, duration)

        return await self.means.ranges.is_silent(
            ask,
            self.series.instrument,
            self.identity.contract_id,
            cell=cell,
            at=self.means.keeper.patience.market_clock(),
        )

    async def learn_sessions(self, stamps: Interval) -> bool:
        """Ask whether a silent stretch has the session that is expected; say what changed."""
        need = self.need(stamps)
        hull = need.gaps().hull
        spans = expected_spans(need.calendar, need.timeframe, hull) if hull else []
        closed = [span for span in spans if is_closed(span, need.now)]
        if not closed:
            return False
        day = need.calendar.day_of(closed[-1].opens_at)
        if not await self.means.schedules.after_silence(self.series, day, self.note):
            return False
        self.facts.learn_calendar(self.means.calendars.of(self.series.instrument))
        return self.need(stamps).gaps() != need.gaps()

    async def is_alive(self) -> bool:
        """Say whether the contract has lately answered with bars; without, more asking is vain."""
        if await self.means.life.are_there(self.asking, self._head):
            return True
        if not self.is_dead:
            self.is_dead = True
            self.note(
                f"the gateway has no data of {self.series.instrument} at all, so nothing is "
                "taken for proved empty: permissions may be missing, or the instrument has ended"
            )
        return False

    async def _head(self) -> datetime | None:
        keeper, instrument = self.means.keeper, self.series.instrument
        return await self.means.ranges.head(
            keeper, instrument, self.identity.contract_id, self.note
        )

    def settle(self, coverage: Coverage, bars: pa.Table | None = None) -> None:
        """Take in what an answer settled, and the bars that it gave."""
        self.facts.settle(coverage, self.means.keeper.patience.market_clock())
        self.commits.add(bars, coverage)
        if bars is not None and self.facts.again:
            self._given.take(bars)

    def _save(self, bars: pa.Table, coverage: Coverage) -> SaveResult:
        """Save, and then remember what a refresh need not ask for once more should it be stopped.

        It runs in the thread of the commits.
        """
        store, patience = self.means.store, self.means.keeper.patience
        result = store.save(self.series, self.identity, bars, coverage)
        if self._is_refresh:
            answered = coverage.settled(patience.market_clock()) & self.facts.again
            store.ledger.record_refreshed(series_key(self.series), answered, patience.clock())
        return result

    def count_kept(self) -> int:
        """Count the bars that were asked for again and that the gateway no longer gives."""
        again = self.facts.proved & self.facts.again
        return self._given.count_kept(self.means.store, self.series, again) if again else 0

    def set_aside(self, stamps: Interval, but: IntervalSet) -> None:
        """Leave to another run what is open in a stretch, but for what is asked again."""
        need = self.need(stamps)
        rest = need.gaps() - but
        if rest:
            self.unproved |= rest - of_open_session(need, rest)
            self.facts.set_aside(rest)

    def note(self, text: str) -> None:
        """Say something that a person may want to know."""
        self.means.progress.noted(self.series, text)
