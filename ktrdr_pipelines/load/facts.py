"""What one load knows of its series: what is wanted, settled, excused and set aside.

Not here: asking (``load.work``), which stretch a mode means (``load.modes``).
"""

from datetime import datetime

from ktrdr_pipelines.core.coverage import Coverage
from ktrdr_pipelines.core.gaps import first_stamp_of, is_closed, whole_sessions
from ktrdr_pipelines.core.instruments import Series
from ktrdr_pipelines.core.intervals import Interval, IntervalSet, between
from ktrdr_pipelines.core.plan import Need
from ktrdr_pipelines.core.sessions import SessionCalendar, expected_spans
from ktrdr_pipelines.limits import IbLimitsRegistry


class SeriesFacts:
    """The facts of one series in one run; they only ever grow.

    Args:
        series: what is loaded.
        wanted: the stretch that is wanted, on the stamp axis; sessions that it cuts are wanted
            as a whole.
        coverage: what is settled on disk.
        calendar: the sessions that are expected.
    """

    def __init__(
        self,
        series: Series,
        wanted: IntervalSet,
        coverage: Coverage,
        *,
        calendar: SessionCalendar,
    ) -> None:
        self.series = series
        self.calendar = calendar
        self.wanted = whole_sessions(self.calendar, series.timeframe, wanted)
        self.bars = coverage.bars
        self.before_listing = IntervalSet()
        self._coverage = coverage
        self._settled: IntervalSet | None = None
        self._set_aside = IntervalSet()

    def need(
        self,
        now: datetime,
        proof_now: datetime,
        within: Interval | None = None,
        *,
        everything: bool = False,
    ) -> Need:
        """State wants and facts as they stand.

        Args:
            now: the gateway's time; it says what is due.
            proof_now: this machine's time; when first asked, it says for the whole run which
                proofs of emptiness still hold.
            within: only this stretch.
            everything: also what this run has set aside.
        """
        wanted = (self.wanted.clip(within) if within else self.wanted) - self.before_listing
        if self._settled is None:
            self._settled = self._coverage.settled(proof_now)
        bars = self.bars.hull
        return Need(
            calendar=self.calendar,
            timeframe=self.series.timeframe,
            wanted=wanted if everything else wanted - self._set_aside,
            settled=self._settled,
            now=now,
            most_days=IbLimitsRegistry.SAFE_DAYS.value[self.series.timeframe.value],
            known_from=bars.start if bars else None,
        )

    def settle(self, coverage: Coverage, proof_now: datetime) -> None:
        """Take in what an answer settled, or what stands on disk by now."""
        self.bars |= coverage.bars
        known = self._coverage.settled(proof_now) if self._settled is None else self._settled
        self._settled = known | coverage.settled(proof_now)

    def set_aside(self, stretch: IntervalSet) -> None:
        """Leave a stretch to another run."""
        self._set_aside |= stretch

    def excuse_before(self, head: datetime | None) -> None:
        """Excuse what lies before the start of the gateway's data, in real time."""
        hull = self.wanted.hull
        if head is None or hull is None:
            return
        if before := between(hull.start, self.first_stamp(head)):
            self.before_listing |= IntervalSet([before])

    def reaches_before(self, head: datetime) -> bool:
        """Say whether anything before the start of the gateway's data is wanted."""
        hull = self.wanted.hull
        return hull is not None and hull.start < self.first_stamp(head)

    def first_stamp(self, head: datetime) -> datetime:
        """Give the earliest stamp that data from a moment of real time can have."""
        return first_stamp_of(self.calendar, self.series.timeframe, head)


def of_open_session(need: Need, gaps: IntervalSet) -> IntervalSet:
    """Give the part of gaps that belongs to sessions which have not closed."""
    hull: Interval | None = gaps.hull
    if hull is None:
        return gaps
    spans = expected_spans(need.calendar, need.timeframe, hull)
    closed = (span.stamps for span in spans if is_closed(span, need.timeframe, need.now))
    return gaps - IntervalSet(closed)
