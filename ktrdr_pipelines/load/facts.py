"""What one load knows of its series: what is wanted, settled, excused and set aside.

Not here: asking (``load.work``), which stretch a mode means (``load.modes``).
"""

from dataclasses import dataclass
from datetime import date, datetime, timedelta

from ktrdr_pipelines.core.coverage import Coverage
from ktrdr_pipelines.core.gaps import due_gaps, first_stamp_of, is_closed, whole_sessions
from ktrdr_pipelines.core.instruments import Instrument, Series
from ktrdr_pipelines.core.intervals import Interval, IntervalSet, between
from ktrdr_pipelines.core.plan import Need
from ktrdr_pipelines.core.sessions import (
    SessionCalendar,
    expected_spans,
    monday_of,
    stamps_between,
)
from ktrdr_pipelines.core.timeframes import Timeframe
from ktrdr_pipelines.limits import IbLimitsRegistry

_WEEK = timedelta(days=7)


@dataclass(frozen=True, slots=True)
class Suspect:
    """A session that has far fewer bars than its neighbours, and how many."""

    day: date
    stamps: Interval
    rows: int


def may_be_suspect(instrument: Instrument, day: date) -> bool:
    """Say whether few bars of a session are odd at all: a contract's last day ends when it expires.

    Its calendar knows only how long others trade on that day.
    """
    return day != instrument.last_trade_date


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
        self._before_head = IntervalSet()
        self._silent = IntervalSet()
        self.again = whole_sessions(self.calendar, series.timeframe, again or IntervalSet())
        self.suspects = suspects
        self.proved = IntervalSet()
        self.left_alone = IntervalSet()
        self.next_try_at: datetime | None = None
        self._stored = coverage
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
        bars = self.bars.hull
        return Need(
            calendar=self.calendar,
            timeframe=self.series.timeframe,
            wanted=wanted if everything else wanted - self._set_aside,
            settled=self._known(proof_now),
            now=now,
            most_days=IbLimitsRegistry.SAFE_DAYS.value[self.series.timeframe.value],
            known_from=bars.start if bars else None,
        )

    @property
    def before_listing(self) -> IntervalSet:
        """What is excused because the gateway's data begin later.

        A silence that probing found counts only while no older bar is known: else it is a hole in
        a history, and is asked for like any other.
        """
        bars, hull = self.bars.hull, self._silent.hull
        if bars is None or hull is None:
            return self._before_head
        before = between(hull.start, bars.start)
        silent = self._silent.clip(before) if before else IntervalSet()
        return self._before_head | (silent & self.wanted)

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

    def was_empty(self, gaps: IntervalSet) -> bool:
        """Say whether all of some gaps was proved empty once; by now it is asked for again."""
        return not gaps - IntervalSet(proof.interval for proof in self._stored.empty)

    def open_in(self, stamps: Interval, now: datetime, proof_now: datetime) -> IntervalSet:
        """Give what has no answer in a stretch, whether or not this run wants it."""
        return due_gaps(
            self.calendar,
            self.series.timeframe,
            wanted=IntervalSet([stamps]) - self.before_listing,
            settled=self._known(proof_now),
            now=now,
        )

    def settle(self, coverage: Coverage, proof_now: datetime) -> None:
        """Take in what an answer settled."""
        self.bars |= coverage.bars
        settled = coverage.settled(proof_now)
        self.proved |= settled
        self._settled = self._known(proof_now) | settled

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

    def set_aside(self, stretch: IntervalSet) -> None:
        """Leave a stretch to another run."""
        self._set_aside |= stretch

    def put_off(self, stretch: IntervalSet, until: datetime | None) -> None:
        """Leave the sessions of a stretch alone, because they were tried in vain a while ago."""
        self.left_alone = whole_sessions(self.calendar, self.series.timeframe, stretch)
        self.next_try_at = until if stretch else None
        self.set_aside(self.left_alone)

    def excuse_before(self, head: datetime | None) -> None:
        """Excuse what lies before the start of the gateway's data, in real time.

        A start that is later than a bar which is held is none, and excuses nothing.
        """
        hull = self.wanted.hull
        if head is None or hull is None or self.contradicts(head):
            return
        if before := between(hull.start, self.first_stamp(head)):
            self._before_head |= IntervalSet([before])

    def contradicts(self, head: datetime) -> bool:
        """Say whether a bar is held that is older than the alleged start of the data."""
        bars = self.bars.hull
        return bars is not None and bars.start < self.first_stamp(head)

    def excuse_silence(self, first: date, end: date) -> None:
        """Excuse session dates ``[first, end)`` that probing found to have no bar."""
        stamps = silent_stamps(self.calendar, self.series.timeframe, first, end)
        self._silent |= IntervalSet(stamps)

    def days_of(self, stamps: Interval) -> tuple[date, date]:
        """Give the session dates of the first and the last moment of a stretch of stamps."""
        last = stamps.end - timedelta(microseconds=1)
        if self.series.timeframe.is_intraday:
            return self.calendar.day_of(stamps.start), self.calendar.day_of(last)
        return stamps.start.date(), last.date()

    def reaches_before(self, head: datetime) -> bool:
        """Say whether anything before the start of the gateway's data is wanted."""
        hull = self.wanted.hull
        return hull is not None and hull.start < self.first_stamp(head)

    def first_stamp(self, head: datetime) -> datetime:
        """Give the earliest stamp that data from a moment of real time can have."""
        return first_stamp_of(self.calendar, self.series.timeframe, head)


def silent_stamps(
    calendar: SessionCalendar, timeframe: Timeframe, first: date, end: date
) -> list[Interval]:
    """Give the stretch of stamps that lies wholly in session dates ``[first, end)``, if any.

    A week that reaches over either end is left out: it may have bars.
    """
    if timeframe is Timeframe.W1:
        end = monday_of(end)
    return [stamps_between(calendar, timeframe, first, end)] if first + _WEEK < end else []


def of_open_session(need: Need, gaps: IntervalSet) -> IntervalSet:
    """Give the part of gaps that belongs to sessions which have not closed."""
    hull: Interval | None = gaps.hull
    if hull is None:
        return gaps
    spans = expected_spans(need.calendar, need.timeframe, hull)
    closed = (span.stamps for span in spans if is_closed(span, need.now))
    return gaps - IntervalSet(closed)
