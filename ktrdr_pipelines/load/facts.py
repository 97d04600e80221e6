"""What one load knows of its series: what is wanted, settled, excused and set aside.

Not here: asking (``load.work``), which stretch a mode means (``load.modes``).
"""

from dataclasses import dataclass
from datetime import date, datetime, timedelta

from ktrdr_pipelines.core.coverage import REFUTABLE, Coverage
from ktrdr_pipelines.core.gaps import due_gaps, first_stamps_of, is_closed, whole_sessions
from ktrdr_pipelines.core.instruments import Series
from ktrdr_pipelines.core.intervals import Interval, IntervalSet, between
from ktrdr_pipelines.core.plan import Need
from ktrdr_pipelines.core.sessions import SessionCalendar, expected_spans
from ktrdr_pipelines.limits import IbLimitsRegistry


@dataclass(frozen=True, slots=True)
class Suspect:
    """A session that has far fewer bars than its neighbours, and how many."""

    day: date
    stamps: Interval
    rows: int


class SeriesFacts:
    """The facts of one series in one run; they only ever grow.

    Args:
        series: what is loaded.
        wanted: the stretch that is wanted, on the stamp axis; sessions that it cuts are wanted
            as a whole.
        coverage: what is settled on disk.
        calendar: the sessions that are expected.
        again: what is asked for once more although it is settled, on the stamp axis; whole
            sessions too.
        suspects: the sessions for whose sake it is, if for any.
    """

    def __init__(
        self,
        series: Series,
        wanted: IntervalSet,
        coverage: Coverage,
        *,
        calendar: SessionCalendar,
        again: IntervalSet | None = None,
        suspects: tuple[Suspect, ...] = (),
    ) -> None:
        self.series = series
        self.calendar = calendar
        self.wanted = whole_sessions(self.calendar, series.timeframe, wanted)
        self.bars = coverage.bars
        self.empty = IntervalSet()
        self.begins: date | None = None
        self.again = whole_sessions(self.calendar, series.timeframe, again or IntervalSet())
        self.suspects = suspects
        self.proved = IntervalSet()
        self.doubted = self.came_empty = IntervalSet()
        self.left_alone = IntervalSet()
        self.next_try_at: datetime | None = None
        self._stored = coverage
        self._settled: IntervalSet | None = None
        self._deferred = IntervalSet()
        self._answered = IntervalSet()

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
        bars = self.bars.hull
        return Need(
            calendar=self.calendar,
            timeframe=self.series.timeframe,
            wanted=wanted if everything else wanted - self._deferred,
            settled=self._known(proof_now),
            now=now,
            most_days=IbLimitsRegistry.SAFE_DAYS.value[self.series.timeframe.value],
            known_from=bars.start if bars else None,
            doubted=self.empty_before | self.doubted,
            came_empty=self.empty_before | self.came_empty,
        )

    @property
    def before_listing(self) -> IntervalSet:
        """What is excused because the contract's data begin later.

        Of the first session, what lies before its first bar is excused too.
        """
        hull = self.wanted.hull
        if self.begins is None or hull is None:
            return IntervalSet()
        ends = first_stamps_of(self.calendar, self.series.timeframe, self.begins)
        bars = self.bars.hull
        end = bars.start if bars is not None and bars.start in ends else ends.start
        before = between(hull.start, end)
        return IntervalSet([before] if before else [])

    def left(self, need: Need, proof_now: datetime) -> IntervalSet:
        """Give what is missing of a need, whatever of it was to be asked for once more.

        ``proof_now`` is this machine's time, as in ``need``.

        Asking again takes nothing back: what was settled before and could not be had again is
        settled still.
        """
        before = self._stored.settled(proof_now)
        return due_gaps(
            need.calendar,
            need.timeframe,
            wanted=need.wanted,
            settled=need.settled | before,
            now=need.now,
        )

    def open_in(self, stamps: Interval, now: datetime, proof_now: datetime) -> IntervalSet:
        """Give what has no answer in a stretch, whether or not this run wants it."""
        return due_gaps(
            self.calendar,
            self.series.timeframe,
            wanted=IntervalSet([stamps]) - self.before_listing,
            settled=self._known(proof_now),
            now=now,
        )

    def cover(self, coverage: Coverage, proof_now: datetime) -> None:
        """Take in what a response covered, or what was proved to be empty."""
        self.bars |= coverage.bars
        self.empty |= IntervalSet(proof.interval for proof in coverage.empty)
        covered = coverage.settled(proof_now)
        self.proved |= covered
        self._settled = self._known(proof_now) | covered

    def answered(self, stamps: IntervalSet) -> None:
        """Take in that responses came to requests for these stamps, whatever they held."""
        self._answered |= stamps

    def unproved_again(self, proof_now: datetime) -> IntervalSet:
        """Give what was settled and requested again, to responses that prove nothing of it."""
        return (self.again & self._answered & self._stored.settled(proof_now)) - self.proved

    @property
    def bars_before(self) -> IntervalSet:
        """What was covered with bars when the run began."""
        return self._stored.bars

    @property
    def empty_before(self) -> IntervalSet:
        """What was ever proved to be empty when the run began; ``empty`` is what it proved."""
        return IntervalSet(proof.interval for proof in self._stored.empty)

    @property
    def confirmed_before(self) -> IntervalSet:
        """The part of ``empty_before`` that nothing contradicted; a person's word is not in it."""
        return IntervalSet(
            proof.interval for proof in self._stored.empty if proof.kind in REFUTABLE
        )

    def learn(self, stored: Coverage, proof_now: datetime) -> None:
        """Take in what stands on disk by now, by whomever; it answers no second question."""
        self.bars |= stored.bars
        self._settled = self._known(proof_now) | (stored.settled(proof_now) - self.again)

    def _known(self, proof_now: datetime) -> IntervalSet:
        if self._settled is None:
            self._settled = self._stored.settled(proof_now) - self.again
        return self._settled

    def learn_calendar(self, calendar: SessionCalendar) -> None:
        """Expect other sessions than so far; what was wanted stays wanted."""
        self.calendar = calendar
        self.wanted |= whole_sessions(calendar, self.series.timeframe, self.wanted)

    def defer(self, part: IntervalSet) -> None:
        """Leave a part to another request or run."""
        self._deferred |= part

    def resume(self, part: IntervalSet) -> None:
        """Request a part after all."""
        self._deferred -= part

    def put_off(self, stretch: IntervalSet, until: datetime | None) -> None:
        """Leave the sessions of a stretch alone, because they were tried in vain a while ago."""
        self.left_alone = whole_sessions(self.calendar, self.series.timeframe, stretch)
        self.next_try_at = until if stretch else None
        self.defer(self.left_alone)

    def excuse_before(self, day: date | None) -> None:
        """Excuse what lies before the session date at which the contract's data begin."""
        self.begins = day

    def days_of(self, stamps: Interval) -> tuple[date, date]:
        """Give the session dates of the first and the last moment of a stretch of stamps."""
        last = stamps.end - timedelta(microseconds=1)
        if self.series.timeframe.is_intraday:
            return self.calendar.day_of(stamps.start), self.calendar.day_of(last)
        return stamps.start.date(), last.date()


def of_open_session(need: Need, gaps: IntervalSet) -> IntervalSet:
    """Give the part of gaps that belongs to sessions which have not closed."""
    hull: Interval | None = gaps.hull
    if hull is None:
        return gaps
    spans = expected_spans(need.calendar, need.timeframe, hull)
    closed = (span.stamps for span in spans if is_closed(span, need.now))
    return gaps - IntervalSet(closed)
