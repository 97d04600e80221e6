"""IbDataLoader: plan, ask, settle, save, for one series at a time.

Not here: which series and which gateway (``load.manager``), the decisions (``core``).
"""

import pyarrow as pa

from ktrdr_pipelines.core.calendars import calendar_named
from ktrdr_pipelines.core.coverage import Coverage
from ktrdr_pipelines.core.instruments import Identity, Series
from ktrdr_pipelines.core.intervals import IntervalSet
from ktrdr_pipelines.load.contracts import known_contract, learn_identity
from ktrdr_pipelines.load.facts import SeriesFacts, of_open_session
from ktrdr_pipelines.load.modes import Bounds, Mode, wanted_by
from ktrdr_pipelines.load.reports import SeriesReport
from ktrdr_pipelines.load.work import Means, SeriesWork
from ktrdr_pipelines.store.parquet import SaveResult


class IbDataLoader:
    """Loads series from a gateway into a store; one object serves many series at once.

    A stop at any moment keeps what was saved; a repeat asks only for the rest.
    """

    def __init__(self, means: Means) -> None:
        self._means = means

    async def load_data_range(
        self, series: Series, wanted: IntervalSet, *, tail: bool = False
    ) -> SeriesReport:
        """Make a stretch of a series complete, and say what could not be.

        Args:
            series: what to load.
            wanted: the stretch, on the stamp axis.
            tail: go before backfills in the gateway's budget.

        Raises:
            GatewayUnreachableError, ClientIdInUseError: there is no gateway to ask.
            ForeignIdentityError: the store holds something else under this symbol.
            StoreError: what was answered could not be saved.
        """
        facts = SeriesFacts(series, wanted, self._means.store.coverage(series))
        self._recall_listing(facts)
        if not self._gaps(facts):
            return self._report(facts)
        identity = await learn_identity(self._means.keeper, self._means.store, series)
        work = SeriesWork(self._means, facts, identity, tail=tail)
        await work.run()
        return self._report(facts, work)

    async def load_progressive(
        self, series: Series, mode: Mode, *, bounds: Bounds | None = None
    ) -> SeriesReport:
        """Load what a mode means for a series; errors as ``load_data_range``."""
        wanted = wanted_by(
            mode,
            series,
            bounds=bounds or Bounds(),
            coverage=self._means.store.coverage(series),
            calendar=calendar_named(series.instrument.calendar),
            now=self._means.keeper.now(),
        )
        return await self.load_data_range(series, wanted, tail=mode is Mode.TAIL)

    def merge_and_save_data(
        self, series: Series, identity: Identity, bars: pa.Table, coverage: Coverage
    ) -> SaveResult:
        """Merge bars and what they settle into the store; newer bars win."""
        return self._means.store.save(series, identity, bars, coverage)

    def _recall_listing(self, facts: SeriesFacts) -> None:
        """Excuse what lies before the oldest data, as far as that is freshly known."""
        instrument = facts.series.instrument
        contract_id = known_contract(self._means.store, facts.series)
        clock = self._means.keeper.patience.clock
        if contract_id and self._means.ranges.is_fresh(instrument, contract_id, clock()):
            facts.excuse_before(self._means.ranges.known_head(instrument, contract_id))

    def _gaps(self, facts: SeriesFacts) -> IntervalSet:
        keeper = self._means.keeper
        return facts.need(keeper.now(), keeper.patience.clock(), everything=True).gaps()

    def _report(self, facts: SeriesFacts, work: SeriesWork | None = None) -> SeriesReport:
        keeper = self._means.keeper
        need = facts.need(keeper.now(), keeper.patience.clock(), everything=True)
        gaps = need.gaps()
        waiting = of_open_session(need, gaps)
        return SeriesReport(
            series=facts.series,
            requests=work.asking.requests if work else 0,
            rows=work.asking.rows if work else 0,
            added=work.commits.added if work else 0,
            revised=work.commits.revised if work else 0,
            unexplained=gaps - waiting,
            waiting=waiting,
            before_listing=facts.before_listing,
            failures=tuple(work.failures) if work else (),
            now=need.now,
        )
