"""IbDataLoader: plan, ask, settle, save, for one series at a time.

Not here: which series and which gateway (``load.manager``), the decisions (``core``).
"""

from dataclasses import replace
from datetime import datetime

import pyarrow as pa

from ktrdr_pipelines.core.coverage import Coverage
from ktrdr_pipelines.core.instruments import Identity, Series
from ktrdr_pipelines.core.intervals import Interval, IntervalSet
from ktrdr_pipelines.errors import (
    ClientIdInUseError,
    ForeignIdentityError,
    GatewayError,
    GatewayUnreachableError,
)
from ktrdr_pipelines.load.contracts import known_contract, learn_identity
from ktrdr_pipelines.load.desk import Means
from ktrdr_pipelines.load.facts import SeriesFacts, of_open_session
from ktrdr_pipelines.load.modes import AskedBy, Bounds, Manner, Mode, wanted_by
from ktrdr_pipelines.load.reports import SeriesReport
from ktrdr_pipelines.load.tries import Tries, next_try, put_off
from ktrdr_pipelines.load.work import SeriesWork
from ktrdr_pipelines.store.ledger import series_key
from ktrdr_pipelines.store.parquet import SaveResult


class IbDataLoader:
    """Loads series from a gateway into a store; one object serves many series at once.

    A stop at any moment keeps what was saved; a repeat asks only for the rest.
    """

    def __init__(self, means: Means) -> None:
        self._means = means

    async def load_data_range(
        self, series: Series, wanted: IntervalSet, manner: Manner | None = None
    ) -> SeriesReport:
        """Make a stretch of a series complete, and say what could not be.

        Args:
            series: what to load.
            wanted: the stretch, on the stamp axis.
            manner: how it is asked for; by a person if not given.

        Raises:
            GatewayUnreachableError, ClientIdInUseError: there is no gateway to ask.
            ForeignIdentityError: the store holds something else under this symbol.
            StoreError: what was answered could not be saved.
        """
        manner = manner or Manner()
        facts = self._facts(series, wanted, manner)
        tries = Tries(self._means.store.ledger, series, self._clock)
        self._recall_listing(facts, manner)
        self._put_off(facts, tries, manner)
        gaps = facts.need(self._means.keeper.now(), self._clock()).gaps().hull
        if gaps is None:
            return self._report(facts)
        identity = await self._identity(series, gaps, tries)
        work = SeriesWork(self._means, facts, identity, manner)
        await work.run()
        return self._report(facts, work)

    async def load_progressive(
        self,
        series: Series,
        mode: Mode,
        *,
        bounds: Bounds | None = None,
        manner: Manner | None = None,
    ) -> SeriesReport:
        """Load what a mode means for a series; errors as ``load_data_range``."""
        tried = self._means.store.ledger.attempts(series_key(series))
        wanted = wanted_by(
            mode,
            series,
            bounds=bounds or Bounds(),
            coverage=self._means.store.coverage(series),
            tried=IntervalSet(attempt.interval for attempt in tried),
            calendar=self._means.calendars.of(series.instrument),
            now=self._means.keeper.now(),
        )
        manner = replace(manner or Manner(), tail=mode is Mode.TAIL)
        return await self.load_data_range(series, wanted, manner)

    def merge_and_save_data(
        self, series: Series, identity: Identity, bars: pa.Table, coverage: Coverage
    ) -> SaveResult:
        """Merge bars and what they settle into the store; newer bars win."""
        return self._means.store.save(series, identity, bars, coverage)

    def _clock(self) -> datetime:
        return self._means.keeper.patience.clock()

    def _facts(self, series: Series, wanted: IntervalSet, manner: Manner) -> SeriesFacts:
        return SeriesFacts(
            series,
            wanted,
            self._means.store.coverage(series),
            calendar=self._means.calendars.of(series.instrument),
            again=wanted if manner.refresh else None,
        )

    async def _identity(self, series: Series, gaps: Interval, tries: Tries) -> Identity:
        """Learn what the bars are; what speaks against it is a try at all that is missing."""
        try:
            return await learn_identity(self._means.keeper, self._means.store, series)
        except (GatewayUnreachableError, ClientIdInUseError):
            raise
        except (GatewayError, ForeignIdentityError) as error:
            tries.failed(gaps, error)
            raise

    def _recall_listing(self, facts: SeriesFacts, manner: Manner) -> None:
        """Excuse what lies before the oldest data, as far as that is known.

        A person's load asks again after a day; other work believes what was heard last, since a
        listing does not move and the question counts against IB's hardest rule.
        """
        instrument, ranges = facts.series.instrument, self._means.ranges
        contract_id = known_contract(self._means.store, facts.series)
        if contract_id is None:
            return
        is_sensor = manner.asked_by is AskedBy.SENSOR
        if is_sensor or ranges.is_fresh(instrument, contract_id, self._clock()):
            facts.excuse_before(ranges.known_head(instrument, contract_id))

    def _put_off(self, facts: SeriesFacts, tries: Tries, manner: Manner) -> None:
        """Leave to later what automatic work has tried in vain a short while ago.

        A session is left alone as a whole: else its newest minutes would be asked for again and
        again while its older ones wait.
        """
        if manner.asked_by is AskedBy.PERSON:
            return
        attempts = tries.known()
        left = put_off(attempts, facts.wanted, self._clock())
        facts.put_off(left, next_try(attempts, self._clock()))

    def _report(self, facts: SeriesFacts, work: SeriesWork | None = None) -> SeriesReport:
        keeper = self._means.keeper
        need = facts.need(keeper.now(), keeper.patience.clock(), everything=True)
        gaps = facts.left(need)
        waiting = of_open_session(need, gaps)
        again = need.gaps() - gaps
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
            put_off=facts.left_alone & gaps,
            next_try_at=facts.next_try_at,
            not_refreshed=again - of_open_session(need, again),
            kept=work.kept if work else 0,
        )
