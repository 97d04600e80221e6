"""Tries in vain: what one run writes down of them, and what automatic work leaves alone.

Not here: how long a kind is left alone (``core.attempts``), the table (``store.attempts``).
"""

from collections.abc import Callable, Iterable
from datetime import datetime, timedelta

from ktrdr_pipelines.core.attempts import SERIES_WIDE, AttemptKind, retry_in
from ktrdr_pipelines.core.instruments import Series
from ktrdr_pipelines.core.intervals import Interval, IntervalSet
from ktrdr_pipelines.errors import (
    ContractAmbiguousError,
    ContractUnclearError,
    ContractUnknownError,
    EntitlementError,
    ForeignIdentityError,
    KtrdrError,
)
from ktrdr_pipelines.store.attempts import Attempt
from ktrdr_pipelines.store.ledger import Ledger, series_key

_OTHER_CONTRACT = (
    ContractUnknownError,
    ContractAmbiguousError,
    ContractUnclearError,
    ForeignIdentityError,
)


_SPARSE = "far fewer bars than the sessions around it; it is requested once more"


def put_off(attempts: Iterable[Attempt], wanted: IntervalSet, now: datetime) -> IntervalSet:
    """Give what automatic work leaves alone of what is wanted of a series.

    A try that concerns the whole series puts off all of it, also what has come to be missing
    since: a contract that has never answered is not asked again for every new session.
    """
    early = [attempt for attempt in attempts if not attempt.is_due(now)]
    if any(attempt.is_series_wide for attempt in early):
        return wanted
    return IntervalSet(attempt.interval for attempt in early) & wanted


def next_try(attempts: Iterable[Attempt], now: datetime) -> datetime | None:
    """Say when the first of the tries that are put off is due, or None where none is."""
    times = (a.next_try_at for a in attempts if a.next_try_at is not None and not a.is_due(now))
    return min(times, default=None)


def kind_of(error: KtrdrError) -> AttemptKind:
    """Say what kind of try an error makes of what was asked."""
    if isinstance(error, EntitlementError):
        return AttemptKind.BLOCKED
    return AttemptKind.UNKNOWN if isinstance(error, _OTHER_CONTRACT) else AttemptKind.ERROR


class Tries:
    """The tries of one series, as one run finds and leaves them."""

    def __init__(self, ledger: Ledger, series: Series, clock: Callable[[], datetime]) -> None:
        self._ledger = ledger
        self._key = series_key(series)
        self._clock = clock
        self._has_answered = False

    def known(self) -> list[Attempt]:
        """Give the tries that are written down."""
        return self._ledger.attempts(self._key)

    def failed(self, stamps: Interval, error: KtrdrError) -> None:
        """Write down that a request for a stretch failed."""
        lasts_s = getattr(error, "retry_in_s", 0.0) if isinstance(error, EntitlementError) else 0.0
        self._record(
            stamps, kind_of(error), str(error), code=getattr(error, "code", None), lasts_s=lasts_s
        )

    def left_open(
        self, stamps: Interval, kind: AttemptKind, text: str, *, due_at: datetime | None = None
    ) -> None:
        """Record that responses left an interval open, and when the next one can count."""
        self._record(stamps, kind, text, due_at=due_at)

    def answered(self) -> None:
        """Take in that bars came: nothing speaks against the series as a whole any more."""
        if not self._has_answered:
            self._has_answered = True
            for kind in SERIES_WIDE:
                self._ledger.forget_attempts(self._key, kind)

    def forget_settled(self, gaps_in: Callable[[Interval], IntervalSet]) -> None:
        """Forget tries at what is settled or excused by now; ``gaps_in`` gives what is not.

        A sparse session is covered and waits all the same (``sparse``).
        """
        for attempt in self.known():
            if attempt.kind is not AttemptKind.SPARSE and not gaps_in(attempt.interval):
                self._ledger.clear_attempts(self._key, attempt.interval, attempt.kind)

    def sparse(
        self, sessions: Iterable[Interval], *, wanted: IntervalSet, answered: IntervalSet
    ) -> None:
        """Record which sessions are sparse now; one that waits already is not put off further.

        Args:
            sessions: those of the whole series.
            wanted: what this run was to load.
            answered: what responses of this run covered.
        """
        now, sparse = self._clock(), list(sessions)
        waiting = []
        for attempt in self.known():
            if attempt.kind is not AttemptKind.SPARSE:
                continue
            if not any(attempt.interval.overlaps(one) for one in sparse):
                self._ledger.clear_attempts(self._key, attempt.interval, attempt.kind)
            elif not attempt.is_due(now) or not answered.covers(attempt.interval):
                waiting.append(attempt.interval)
        for one in sparse:
            if wanted.clip(one) and not any(interval.covers(one) for interval in waiting):
                self.left_open(one, AttemptKind.SPARSE, _SPARSE)

    def _record(
        self,
        stamps: Interval,
        kind: AttemptKind,
        text: str,
        *,
        code: int | None = None,
        lasts_s: float = 0.0,
        due_at: datetime | None = None,
    ) -> None:
        at = self._clock()
        if due_at is None:
            wait = retry_in(kind, self._tries(stamps, kind))
            due_at = at + (timedelta(seconds=lasts_s) if lasts_s else wait)
        self._ledger.record_attempt(
            self._key, stamps, kind, error=text, code=code, next_try_at=due_at, at=at
        )

    def _tries(self, stamps: Interval, kind: AttemptKind) -> int:
        """Count this try and those before it."""
        before = (
            attempt.tries
            for attempt in self.known()
            if attempt.kind is kind and (kind in SERIES_WIDE or attempt.interval.overlaps(stamps))
        )
        return 1 + max(before, default=0)
