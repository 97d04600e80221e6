"""The outlook of a series: what a job wants of it and what is missing, as far as the store knows.

It asks nobody, so a plan and the load that follows it begin with the same. Not here: asking
(``load.work``), what a plan costs (``load.estimates``).
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import date, datetime

from ktrdr_pipelines.core.attempts import TO_CONFIRM, AttemptKind
from ktrdr_pipelines.core.bars import micros, moment
from ktrdr_pipelines.core.calendars import Calendars
from ktrdr_pipelines.core.instruments import Series
from ktrdr_pipelines.core.intervals import Interval, IntervalSet
from ktrdr_pipelines.core.spanarrays import span_arrays
from ktrdr_pipelines.core.stretches import stretches_of
from ktrdr_pipelines.core.suspects import may_be_suspect, suspect_days
from ktrdr_pipelines.core.timeframes import Timeframe
from ktrdr_pipelines.load.contracts import known_contract
from ktrdr_pipelines.load.evidence import Evidence
from ktrdr_pipelines.load.facts import (
    SeriesFacts,
    Suspect,
    of_open_session,
)
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

    def unexplained(self, job: Job, now: datetime) -> IntervalSet:
        """Return what a job wants and the store neither covers nor explains, sessions that closed.

        Args:
            job: what is wanted.
            now: the gateway's time.
        """
        facts = self.facts(job.series, self.wanted(job, now), Manner(tail=True))
        need = facts.need(now, self._market_clock(), everything=True)
        gaps = facts.left(need, self._market_clock())
        return gaps - of_open_session(need, gaps)

    def facts(self, series: Series, wanted: IntervalSet, manner: Manner) -> SeriesFacts:
        """Give what is known of a series: what is settled, excused and put off."""
        coverage, calendar = self._store.coverage(series), self._calendars.of(series.instrument)
        suspects = () if manner.refresh or manner.tail else self.due_sparse(series)
        again = IntervalSet(one.stamps for one in suspects) & wanted
        if manner.refresh:
            again = wanted - self._refreshed(series)
        facts = SeriesFacts(
            series, wanted, coverage, calendar=calendar, again=again, suspects=suspects
        )
        contract_id = known_contract(self._store, series)
        if contract_id is not None:
            self.recall_beginning(facts, contract_id)
        self._put_off(facts, manner)
        return facts

    def _refreshed(self, series: Series) -> IntervalSet:
        """Give what a refresh that was stopped has had already: the next one goes on from there."""
        known = self._store.ledger.refreshed(series_key(series), self._clock())
        return known.stamps if known else IntervalSet()

    def due_sparse(self, series: Series) -> tuple[Suspect, ...]:
        """Return the sparse sessions that may be requested once more by now.

        A second response counts only some time after the first: a gateway that is ill for a
        minute returns too little twice.
        """
        early = IntervalSet(
            attempt.interval
            for attempt in self._store.ledger.attempts(series_key(series))
            if attempt.kind is AttemptKind.SPARSE and not attempt.is_due(self._clock())
        )
        return tuple(one for one in self.suspects(series) if not early.clip(one.stamps))

    def suspects(self, series: Series, begins: date | None = None) -> tuple[Suspect, ...]:
        """Return the sparse sessions: far fewer bars than their neighbours, or none.

        What was requested once more and gave the same is not sparse any more, and what is proved
        to be empty is judged by its statements. The session at which the data begin may begin late.
        """
        coverage, calendar = self._store.coverage(series), self._calendars.of(series.instrument)
        if not coverage.bars or series.timeframe is Timeframe.W1:
            return ()
        spans, rows = span_arrays(calendar, series.timeframe), self._store.rows_per_session(series)
        traded = self._store.traded_per_session(series)
        settled, now = stretches_of(coverage.bars), micros(self._market_clock())
        confirmed = self._store.ledger.confirmed(series_key(series))
        found = (
            (spans.days[place].item(), int(spans.spans.starts[place]), int(spans.spans.ends[place]))
            for place in suspect_days(spans, rows, settled, now, traded=traded)
        )
        return tuple(
            Suspect(day, Interval(moment(start), moment(end)), rows.get(day, 0))
            for day, start, end in found
            if confirmed.get(day) != rows.get(day, 0)
            and day != begins
            and may_be_suspect(series.instrument, day)
        )

    def recall_beginning(self, facts: SeriesFacts, contract_id: int) -> None:
        """Excuse what lies before the contract's data, as far as statements prove that."""
        series, hull = facts.series, facts.bars.hull
        evidence = Evidence(self._store, self._ranges.gateway, self._clock)
        head = self._ranges.known_head(series.instrument, contract_id)
        unsaved = facts.days_of(hull)[0] if hull and series.timeframe is not Timeframe.W1 else None
        found = evidence.beginning(series.instrument, facts.calendar, head, unsaved=unsaved)
        facts.excuse_before(found)

    def _put_off(self, facts: SeriesFacts, manner: Manner) -> None:
        """Leave to later what automatic work has tried in vain a short while ago.

        A session is left alone as a whole: else its newest minutes would be asked for again and
        again while its older ones wait. A tail that finds nothing new confirms nothing old.
        """
        if manner.asked_by is AskedBy.PERSON:
            return
        now = self._clock()
        attempts = Tries(self._store.ledger, facts.series, self._clock).known()
        alone = put_off(attempts, facts.wanted, now)
        if manner.tail:
            waits = IntervalSet(one.interval for one in attempts if one.kind in TO_CONFIRM)
            market_now = self._market_clock()
            if not facts.need(market_now, market_now).gaps() - waits:
                alone |= waits & facts.wanted
        facts.put_off(alone, next_try(attempts, now))
