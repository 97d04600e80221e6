"""The state of one series in a run: what is wanted, covered, excused and deferred.

``SeriesRun`` owns it and alone changes it; all others read it, or return a ``StateChange``. It is
pure: it knows no files and no clock. All intervals are by bar timestamp.

Not here: making it from the store (``sync.stored_states``), the rules of gaps
(``domain.planning.gaps``).
"""

from dataclasses import dataclass
from datetime import date, datetime, timedelta

import numpy as np
import pyarrow as pa

from ktrdr_pipelines.domain.calendars.session_grid import SessionGrid, Span, session_grid
from ktrdr_pipelines.domain.calendars.sessions import SessionCalendar
from ktrdr_pipelines.domain.coverage import REFUTABLE, Coverage
from ktrdr_pipelines.domain.instruments import Series
from ktrdr_pipelines.domain.intervals import Interval, IntervalSet, between
from ktrdr_pipelines.domain.planning.chunks import Need
from ktrdr_pipelines.domain.planning.empty_ranges import Statement
from ktrdr_pipelines.domain.planning.gaps import beginning_timestamp, due_gaps, is_closed
from ktrdr_pipelines.domain.timeframes import Timeframe
from ktrdr_pipelines.limits import IbLimitsRegistry
from ktrdr_pipelines.store.bars.footer import Presumed

_INSTANT = timedelta(microseconds=1)


@dataclass(frozen=True, slots=True)
class SparseSession:
    """A session that has far fewer bars than its neighbours, and how many."""

    day: date
    interval: Interval
    rows: int


@dataclass(frozen=True, slots=True)
class StateChange:
    """What one step of a run found: changes of the state, bars to save, statements to record.

    ``coverage`` is covered with ``bars`` or confirmed empty; ``implausible`` are the timestamps,
    int64 microseconds, of bars that are kept although their values are implausible; ``presumed``
    states that their price basis was not shown by a comparison; ``answered``
    got a response, with or without bars. What is open in ``deferred`` waits for another request or
    run; what is open in ``skipped`` does too, and is left to daily bars. ``resumed`` is requested
    after all. Responses for ``without_bars`` had no bars; its part ``unconfirmed`` does not lie
    before all bars that are known. ``is_about_beginning``: where the data of the contract begin is
    to be judged again.
    """

    coverage: Coverage = Coverage()  # noqa: RUF009  (immutable)
    bars: pa.Table | None = None
    presumed: Presumed | None = None
    implausible: tuple[int, ...] = ()
    statements: tuple[Statement, ...] = ()
    answered: IntervalSet = IntervalSet()  # noqa: RUF009  (immutable)
    deferred: IntervalSet = IntervalSet()  # noqa: RUF009  (immutable)
    skipped: IntervalSet = IntervalSet()  # noqa: RUF009  (immutable)
    resumed: IntervalSet = IntervalSet()  # noqa: RUF009  (immutable)
    without_bars: IntervalSet = IntervalSet()  # noqa: RUF009  (immutable)
    unconfirmed: IntervalSet = IntervalSet()  # noqa: RUF009  (immutable)
    is_about_beginning: bool = False


@dataclass(frozen=True, slots=True)
class Limits:
    """What the gateway and the kind of run allow of a request; as the fields of ``Need``."""

    most_sessions: int | None = None
    is_by_the_year: bool = False
    ends_now: bool = False
    width: int | None = None


@dataclass(frozen=True, slots=True)
class _Due:
    """What planning takes from a state until what it depends on changes.

    ``everything`` is what is wanted and not excused, ``not_deferred`` what of it this run requests;
    the others are the fields of ``Need``.
    """

    everything: IntervalSet
    not_deferred: IntervalSet
    unconfirmed: IntervalSet
    without_bars: IntervalSet


class SeriesState:
    """What one run knows of its series; coverage is only ever added.

    Args:
        series: what is loaded.
        wanted: what is wanted, by bar timestamp; sessions that it cuts are wanted as a whole.
        coverage: what is covered on disk.
        calendar: the sessions that are expected.
        again: what is requested once more although it is covered, by bar timestamp; widened to
            whole sessions too.
        sparse_sessions: the sparse sessions that are part of ``again``, if any.
    """

    def __init__(
        self,
        series: Series,
        wanted: IntervalSet,
        coverage: Coverage,
        *,
        calendar: SessionCalendar,
        again: IntervalSet | None = None,
        sparse_sessions: tuple[SparseSession, ...] = (),
    ) -> None:
        self.series = series
        self.calendar = calendar
        self.wanted = self.grid.widened(wanted)
        self.bars = coverage.bars
        self.empty = IntervalSet()
        self.begins: date | None = None
        self.again = self.grid.widened(again or IntervalSet())
        self.sparse_sessions = sparse_sessions
        self.proved = IntervalSet()
        self.unconfirmed = self.without_bars = IntervalSet()
        self.skipped = IntervalSet()
        self.next_try_at: datetime | None = None
        self._stored = coverage
        self._covered: IntervalSet | None = None
        self._deferred = IntervalSet()
        self._left_to_daily_bars = IntervalSet()
        self._answered = IntervalSet()
        self._empty_before: IntervalSet | None = None
        self._due: _Due | None = None

    # --- what is open --------------------------------------------------------------------------

    def need(
        self,
        now: datetime,
        proof_now: datetime,
        within: Interval | None = None,
        *,
        everything: bool = False,
        limits: Limits = Limits(),
    ) -> Need:
        """Return what planning needs of this state.

        Args:
            now: the gateway's time, which decides what is due.
            proof_now: this machine's time, which decides which confirmed empty ranges still hold;
                the first value passed decides for the whole run.
            within: only this interval.
            everything: also what this run has deferred.
            limits: what the gateway and the kind of run allow of a request.
        """
        due = self._due = self._due or self._made_due()
        wanted = due.everything if everything else due.not_deferred
        return Need(
            calendar=self.calendar,
            timeframe=self.series.timeframe,
            wanted=wanted.clip(within) if within else wanted,
            covered=self._known(proof_now),
            now=now,
            most_days=IbLimitsRegistry.SAFE_DAYS.value[self.series.timeframe.value],
            most_sessions=limits.most_sessions,
            is_by_the_year=limits.is_by_the_year,
            unconfirmed=due.unconfirmed,
            without_bars=due.without_bars,
            ends_now=limits.ends_now,
            width=limits.width,
        )

    def _made_due(self) -> "_Due":
        """Return what ``need`` takes from this state."""
        everything = self.wanted - self.before_listing
        return _Due(
            everything=everything,
            not_deferred=everything - self._deferred,
            unconfirmed=self.empty_before | self.unconfirmed,
            without_bars=self.empty_before | self.without_bars,
        )

    @property
    def before_listing(self) -> IntervalSet:
        """What is excused because the contract's data begin later.

        In the first session, this includes what lies before its first bar.
        """
        bounds = self.wanted.bounds
        if self.begins is None or bounds is None:
            return IntervalSet()
        end = beginning_timestamp(self.calendar, self.series.timeframe, self.begins, self.bars)
        before = between(bounds.start, end)
        return IntervalSet([before] if before else [])

    def left(self, need: Need, proof_now: datetime) -> IntervalSet:
        """Return what is missing of a need, not counting what is only to be requested once more.

        What was covered before the run stays covered, even if requesting it again fails.
        ``proof_now`` is this machine's time, as in ``need``.
        """
        before = self._stored.covered(proof_now, self.grid)
        return due_gaps(
            need.calendar,
            need.timeframe,
            wanted=need.wanted,
            covered=need.covered | before,
            now=need.now,
        )

    def closed_gaps(self, now: datetime, proof_now: datetime) -> IntervalSet:
        """Return what is missing of sessions that have closed, also what the run has deferred."""
        need = self.need(now, proof_now, everything=True)
        gaps = self.left(need, proof_now)
        return gaps - of_open_session(need, gaps)

    def open_in(self, interval: Interval, now: datetime, proof_now: datetime) -> IntervalSet:
        """Return what is due and not covered in an interval, whether or not this run wants it."""
        return due_gaps(
            self.calendar,
            self.series.timeframe,
            wanted=IntervalSet([interval]) - self.before_listing,
            covered=self._known(proof_now),
            now=now,
        )

    def unconfirmed_again(self, proof_now: datetime) -> IntervalSet:
        """Return what was covered and requested again, but not proved by the responses."""
        return (
            self.again & self._answered & self._stored.covered(proof_now, self.grid)
        ) - self.proved

    def is_left_to_daily_bars(self, interval: Interval) -> bool:
        """Return whether this run left an interval unrequested because daily bars can decide."""
        return self._left_to_daily_bars.covers(interval)

    # --- what is known -------------------------------------------------------------------------

    @property
    def bars_before(self) -> IntervalSet:
        """What was covered with bars when the run began."""
        return self._stored.bars

    @property
    def empty_before(self) -> IntervalSet:
        """What earlier runs confirmed empty, also if expired; ``empty`` is what this one did."""
        if self._empty_before is None:
            self._empty_before = IntervalSet(proof.interval for proof in self._stored.empty)
        return self._empty_before

    @property
    def confirmed_before(self) -> IntervalSet:
        """The part of ``empty_before`` that nothing contradicted and no user acknowledged."""
        return IntervalSet(
            proof.interval for proof in self._stored.empty if proof.kind in REFUTABLE
        )

    @property
    def oldest_open(self) -> datetime | None:
        """When the oldest session that is covered with bars opens, in real time; None without."""
        bounds = self.bars.bounds
        if bounds is None:
            return None
        if self.series.timeframe.is_intraday:
            return bounds.start
        first = Interval(bounds.start, bounds.start + _INSTANT)
        spans = self.grid.spans_in(first)
        return spans[0].opens_at if spans else bounds.start

    @property
    def oldest_day(self) -> date | None:
        """The last session date that the oldest bar can be of: a week's bar refutes only later."""
        bounds = self.bars.bounds
        if bounds is None:
            return None
        timeframe = self.series.timeframe
        if timeframe.is_intraday:
            return self.calendar.day_of(bounds.start)
        first = bounds.start.date()
        return first + timedelta(days=6) if timeframe is Timeframe.W1 else first

    def is_before_bars(self, span: Span) -> bool:
        """Return whether a session lies before the oldest bar."""
        oldest = self.oldest_open
        return oldest is not None and span.closes_at <= oldest

    # --- changes, by the owner alone -----------------------------------------------------------

    def apply(self, change: StateChange, now: datetime, proof_now: datetime) -> None:
        """Apply what a step of the run found; the times are those of ``need``."""
        coverage, oldest = change.coverage, self.bars.starts[:1]
        if change.without_bars or change.unconfirmed or change.resumed:
            self._due = None
        if coverage:
            self.bars |= coverage.bars
            if coverage.empty:
                self.empty |= IntervalSet(proof.interval for proof in coverage.empty)
            covered = coverage.covered(proof_now)
            self.proved |= covered
            self._covered = self._known(proof_now) | covered
            if self.begins is not None and not np.array_equal(self.bars.starts[:1], oldest):
                self._due = None  # what lies before the first bar is excused
        if self.again:
            self._answered |= change.answered
        self.without_bars |= change.without_bars
        self.unconfirmed |= change.unconfirmed
        self._deferred -= change.resumed
        for part in change.skipped:
            left = self.need(now, proof_now, part).gaps()
            self._left_to_daily_bars |= left
            self._deferred |= left
            self._due = None
        for part in change.deferred:
            self._deferred |= self.need(now, proof_now, part).gaps()
            self._due = None

    def learn_saved(self, stored: Coverage, proof_now: datetime) -> None:
        """Add what any run has saved on disk by now; it does not count as requested again."""
        self.bars |= stored.bars
        self._due = None
        self._covered = self._known(proof_now) | (stored.covered(proof_now, self.grid) - self.again)

    def learn_calendar(self, calendar: SessionCalendar) -> None:
        """Replace the expected sessions; what was wanted stays wanted."""
        if calendar is not self.calendar:
            self.calendar, self._due = calendar, None
            self.wanted |= self.grid.widened(self.wanted)

    def defer_whole(self, interval: Interval) -> None:
        """Defer all of an interval to another run, also what becomes due in it meanwhile."""
        self._deferred |= IntervalSet([interval])
        self._due = None

    def defer_sessions(self, interval: IntervalSet, until: datetime | None) -> None:
        """Skip the sessions of an interval until a time, because of earlier failed attempts."""
        self.skipped = self.grid.widened(interval)
        self.next_try_at = until if interval else None
        self._deferred |= self.skipped
        self._due = None

    def excuse_before(self, day: date | None) -> None:
        """Excuse what lies before the session date at which the contract's data begin."""
        self.begins, self._due = day, None

    @property
    def grid(self) -> SessionGrid:
        """The spans that the series is expected to have."""
        return session_grid(self.calendar, self.series.timeframe)

    def _known(self, proof_now: datetime) -> IntervalSet:
        if self._covered is None:
            self._covered = self._stored.covered(proof_now, self.grid) - self.again
        return self._covered


def of_open_session(need: Need, gaps: IntervalSet) -> IntervalSet:
    """Return the part of gaps that belongs to sessions that have not closed."""
    bounds: Interval | None = gaps.bounds
    if bounds is None:
        return gaps
    spans = need.grid.spans_in(bounds)
    closed = (span.interval for span in spans if is_closed(span, need.now))
    return gaps - IntervalSet(closed)
