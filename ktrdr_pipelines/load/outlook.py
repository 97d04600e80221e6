"""The outlook of a series: what a job wants of it and what is missing, as far as the store knows.

It asks nobody, so a plan and the load that follows it begin with the same. Not here: asking
(``load.work``), what a plan costs (``load.estimates``).
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime

from ktrdr_pipelines.core.bars import micros, moment
from ktrdr_pipelines.core.calendars import Calendars
from ktrdr_pipelines.core.instruments import Series
from ktrdr_pipelines.core.intervals import Interval, IntervalSet
from ktrdr_pipelines.core.spanarrays import span_arrays
from ktrdr_pipelines.core.stretches import stretches_of
from ktrdr_pipelines.core.suspects import suspect_days
from ktrdr_pipelines.core.timeframes import Timeframe
from ktrdr_pipelines.load.contracts import known_contract
from ktrdr_pipelines.load.facts import SeriesFacts, Suspect, may_be_suspect
from ktrdr_pipelines.load.modes import AskedBy, Bounds, Manner, Mode, wanted_by
from ktrdr_pipelines.load.ranges import RangeDiscovery
from ktrdr_pipelines.load.tries import Tries, next_try, put_off
from ktrdr_pipelines.store.ledger import series_key
from ktrdr_pipelines.store.parquet import BarStore


@dataclass(frozen=True, slots=True)
class Job:
    """One series to load: by mode and bounds, or a stretch of stamps.

    ``asked_by`` says whether what was tried in vain is put off; ``refresh`` asks also for what is
    settled, once.
    """

    series: Series
    mode: Mode = Mode.FULL
    bounds: Bounds = field(default_factory=Bounds)
    wanted: IntervalSet | None = None
    asked_by: AskedBy = AskedBy.PERSON
    refresh: bool = False

    @property
    def manner(self) -> Manner:
        """How it is asked for."""
        return Manner(self.mode is Mode.TAIL, self.asked_by, self.refresh)


class Outlook:
    """Looks at series of one store.

    Args:
        store: what is settled.
        calendars: which sessions are expected.
        ranges: where data begin.
        clock: real time.
        market_clock: market time; the same if not given.
    """

    def __init__(
        self,
        store: BarStore,
        calendars: Calendars,
        ranges: RangeDiscovery,
        clock: Callable[[], datetime],
        *,
        market_clock: Callable[[], datetime] | None = None,
    ) -> None:
        self._store = store
        self._calendars = calendars
        self._ranges = ranges
        self._clock = clock
        self._market_clock = market_clock or clock

    def wanted(self, job: Job, now: datetime) -> IntervalSet:
        """Give the stretch of stamps that a job means."""
        if job.wanted is not None:
            return job.wanted
        tried = self._store.ledger.attempts(series_key(job.series))
        return wanted_by(
            job.mode,
            job.series,
            bounds=job.bounds,
            coverage=self._store.coverage(job.series),
            tried=IntervalSet(attempt.interval for attempt in tried),
            calendar=self._calendars.of(job.series.instrument),
            now=now,
        )

    def missing(self, job: Job, now: datetime) -> IntervalSet:
        """Give what a job would ask for now, on the stamp axis."""
        facts = self.facts(job.series, self.wanted(job, now), job.manner)
        return facts.need(now, self._market_clock()).gaps()

    def facts(self, series: Series, wanted: IntervalSet, manner: Manner) -> SeriesFacts:
        """Give what is known of a series: what is settled, excused and put off."""
        coverage, calendar = self._store.coverage(series), self._calendars.of(series.instrument)
        suspects = () if manner.refresh or manner.tail else self.suspects(series)
        again = IntervalSet(one.stamps for one in suspects) & wanted
        if manner.refresh:
            again = wanted - self._refreshed(series)
        facts = SeriesFacts(
            series, wanted, coverage, calendar=calendar, again=again, suspects=suspects
        )
        contract_id = known_contract(self._store, series)
        if contract_id is not None:
            self.recall_listing(facts, manner, contract_id)
        self._put_off(facts, manner)
        return facts

    def _refreshed(self, series: Series) -> IntervalSet:
        """Give what a refresh that was stopped has had already: the next one goes on from there."""
        known = self._store.ledger.refreshed(series_key(series), self._clock())
        return known.stamps if known else IntervalSet()

    def suspects(self, series: Series) -> tuple[Suspect, ...]:
        """Give the sessions that have far fewer bars than their neighbours.

        What was asked again and gave the same is no suspect any more.
        """
        coverage, calendar = self._store.coverage(series), self._calendars.of(series.instrument)
        if not coverage.bars or series.timeframe is Timeframe.W1:
            return ()
        spans, rows = span_arrays(calendar, series.timeframe), self._store.rows_per_session(series)
        empty = IntervalSet(proof.interval for proof in coverage.empty)
        settled, now = stretches_of(coverage.bars | empty), micros(self._market_clock())
        confirmed = self._store.ledger.confirmed(series_key(series))
        found = (
            (spans.days[place].item(), int(spans.spans.starts[place]), int(spans.spans.ends[place]))
            for place in suspect_days(spans, rows, settled, now)
        )
        return tuple(
            Suspect(day, Interval(moment(start), moment(end)), rows.get(day, 0))
            for day, start, end in found
            if confirmed.get(day) != rows.get(day, 0) and may_be_suspect(series.instrument, day)
        )

    def recall_listing(self, facts: SeriesFacts, manner: Manner, contract_id: int) -> None:
        """Excuse what lies before the oldest data, as far as that is known.

        A person's load asks again after a day; other work believes what was heard last, since a
        listing does not move and the question counts against IB's hardest rule.
        """
        instrument = facts.series.instrument
        is_sensor = manner.asked_by is AskedBy.SENSOR
        if is_sensor or self._ranges.is_fresh(instrument, contract_id, self._clock()):
            facts.excuse_before(self._ranges.known_head(instrument, contract_id))
        for one in self._ranges.silences(instrument, contract_id, self._market_clock()):
            facts.excuse_silence(one.first, one.end)

    def _put_off(self, facts: SeriesFacts, manner: Manner) -> None:
        """Leave to later what automatic work has tried in vain a short while ago.

        A session is left alone as a whole: else its newest minutes would be asked for again and
        again while its older ones wait.
        """
        if manner.asked_by is AskedBy.PERSON:
            return
        now = self._clock()
        attempts = Tries(self._store.ledger, facts.series, self._clock).known()
        facts.put_off(put_off(attempts, facts.wanted, now), next_try(attempts, now))
