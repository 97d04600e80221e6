"""IbDataLoader: plan, ask, settle, save, for one series at a time.

Not here: which series and which gateway (``load.manager``), the decisions (``core``).
"""

import pyarrow as pa

from ktrdr_pipelines.core.coverage import Coverage
from ktrdr_pipelines.core.instruments import Identity, Series
from ktrdr_pipelines.core.intervals import IntervalSet
from ktrdr_pipelines.load.contracts import known_contract, learn_identity
from ktrdr_pipelines.load.desk import Means
from ktrdr_pipelines.load.facts import SeriesFacts, of_open_session
from ktrdr_pipelines.load.modes import Bounds, Mode, wanted_by
from ktrdr_pipelines.load.reports import SeriesReport
from ktrdr_pipelines.load.work import SeriesWork
from ktrdr_pipelines.store.ledger import Attempt, series_key
from ktrdr_pipelines.store.parquet import SaveResult


class IbDataLoader:
    """Loads series from a gateway into a store; one object serves many series at once.

    A stop at any moment keeps what was saved; a repeat asks only for the rest.
    """

    def __init__(self, means: Means) -> None:
        self._means = means

    async def load_data_range(
        self,
        series: Series,
        wanted: IntervalSet,
        *,
        tail: bool = False,
        put_off: IntervalSet | None = None,
    ) -> SeriesReport:
        """Make a stretch of a series complete, and say what could not be.

        Args:
            series: what to load.
            wanted: the stretch, on the stamp axis.
            tail: go before backfills in the gateway's budget, and oldest first.
            put_off: what is wanted, but asked for by another run.

        Raises:
            GatewayUnreachableError, ClientIdInUseError: there is no gateway to ask.
            ForeignIdentityError: the store holds something else under this symbol.
            StoreError: what was answered could not be saved.
        """
        clock = self._means.keeper.patience.clock
        facts = SeriesFacts(
            series,
            wanted,
            self._means.store.coverage(series),
            calendar=self._means.calendars.of(series.instrument),
        )
        facts.set_aside(put_off or IntervalSet())
        self._recall_listing(facts)
        if not facts.need(self._means.keeper.now(), clock()).gaps():
            return self._report(facts)
        identity = await learn_identity(self._means.keeper, self._means.store, series)
        work = SeriesWork(self._means, facts, identity, tail=tail)
        await work.run()
        return self._report(facts, work)

    async def load_progressive(
        self, series: Series, mode: Mode, *, bounds: Bounds | None = None
    ) -> SeriesReport:
        """Load what a mode means for a series; errors as ``load_data_range``."""
        tried = self._attempts(series)
        wanted = wanted_by(
            mode,
            series,
            bounds=bounds or Bounds(),
            coverage=self._means.store.coverage(series),
            tried=IntervalSet(attempt.interval for attempt in tried),
            calendar=self._means.calendars.of(series.instrument),
            now=self._means.keeper.now(),
        )
        if mode is not Mode.TAIL:
            return await self.load_data_range(series, wanted)
        put_off = IntervalSet(attempt.interval for attempt in tried if not self._is_due(attempt))
        return await self.load_data_range(series, wanted, tail=True, put_off=put_off)

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

    def _attempts(self, series: Series) -> list[Attempt]:
        return self._means.store.ledger.attempts(series_key(series))

    def _is_due(self, attempt: Attempt) -> bool:
        at = attempt.next_try_at
        return at is None or at <= self._means.keeper.patience.clock()

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
