"""Failed and inconclusive attempts of one series: recorded by a run, and deferred by later ones.

Not here: when a failed attempt is due again (``domain.planning.retry_schedule``), the table
(``store.ledger.attempts``).
"""

from collections.abc import Callable, Iterable, Mapping
from datetime import date, datetime, timedelta

from ktrdr_pipelines.domain.instruments import Series
from ktrdr_pipelines.domain.intervals import Interval, IntervalSet
from ktrdr_pipelines.domain.planning.retry_schedule import SERIES_WIDE, AttemptKind, retry_in
from ktrdr_pipelines.errors import (
    ContractAmbiguousError,
    ContractUnclearError,
    ContractUnknownError,
    EntitlementError,
    ForeignIdentityError,
    KtrdrError,
)
from ktrdr_pipelines.store.ledger.attempts import Attempt
from ktrdr_pipelines.store.ledger.ledger import Ledger, series_key

_OTHER_CONTRACT = (
    ContractUnknownError,
    ContractAmbiguousError,
    ContractUnclearError,
    ForeignIdentityError,
)


_BASIS = "the price basis of the bars that were returned is not confirmed yet"
_SPARSE = "far fewer bars than the sessions around it; it is requested once more"


def deferred(attempts: Iterable[Attempt], wanted: IntervalSet, now: datetime) -> IntervalSet:
    """Return the part of what is wanted of a series that automatic work skips.

    An attempt that concerns the whole series defers all of it, also what has become due since: a
    contract that has never returned bars is not requested again for every new session.
    """
    early = [attempt for attempt in attempts if not attempt.is_due(now)]
    if any(attempt.is_series_wide for attempt in early):
        return wanted
    return IntervalSet(attempt.interval for attempt in early) & wanted


def next_try(attempts: Iterable[Attempt], now: datetime) -> datetime | None:
    """Return when the first of the deferred attempts is due, or None if none is deferred."""
    times = (a.next_try_at for a in attempts if a.next_try_at is not None and not a.is_due(now))
    return min(times, default=None)


def kind_of(error: KtrdrError) -> AttemptKind:
    """Return the kind of attempt to record for an error."""
    if isinstance(error, EntitlementError):
        return AttemptKind.BLOCKED
    return AttemptKind.UNKNOWN if isinstance(error, _OTHER_CONTRACT) else AttemptKind.ERROR


class FailedAttempts:
    """The failed and inconclusive attempts of one series, read and recorded by one run."""

    def __init__(self, ledger: Ledger, series: Series, clock: Callable[[], datetime]) -> None:
        self._ledger = ledger
        self._key = series_key(series)
        self._clock = clock
        self._has_answered = False

    def known(self) -> list[Attempt]:
        """Return the recorded attempts."""
        return self._ledger.attempts.of(self._key)

    def failed(self, interval: Interval, error: KtrdrError) -> None:
        """Record that a request for an interval failed."""
        lasts_s = getattr(error, "retry_in_s", 0.0) if isinstance(error, EntitlementError) else 0.0
        self._record(
            interval, kind_of(error), str(error), code=getattr(error, "code", None), lasts_s=lasts_s
        )

    def left_open(
        self, interval: Interval, kind: AttemptKind, text: str, *, due_at: datetime | None = None
    ) -> None:
        """Record that responses left an interval open; ``due_at`` is when the next can count."""
        self._record(interval, kind, text, due_at=due_at)

    def basis_unconfirmed(self, interval: Interval) -> None:
        """Record that bars were returned on a price basis that is not confirmed."""
        self._record(interval, AttemptKind.BASIS, _BASIS)

    def no_data(self, interval: Interval) -> None:
        """Record that the gateway has no data of the contract at all."""
        self._record(interval, AttemptKind.NO_DATA, "no data at all")

    def answered(self) -> None:
        """Record that the gateway returned bars: clear the attempts that defer the whole series."""
        if not self._has_answered:
            self._has_answered = True
            for kind in SERIES_WIDE:
                self._ledger.attempts.forget(self._key, kind)

    def to_close(self) -> list[Attempt]:
        """Return the attempts that end once nothing in their interval is missing.

        Attempts at sparse sessions do not, which are covered: ``sparse`` clears them.
        """
        return [one for one in self.known() if one.kind is not AttemptKind.SPARSE]

    def close(self, attempt: Attempt) -> None:
        """Clear an attempt: what it was for is covered or excused by now."""
        self._ledger.attempts.clear(self._key, attempt.interval, attempt.kind)

    def sparse(
        self, sessions: Iterable[Interval], *, wanted: IntervalSet, answered: IntervalSet
    ) -> None:
        """Record which sessions are sparse now; one that is deferred already keeps its time.

        Args:
            sessions: the sparse sessions of the whole series.
            wanted: what this run was to load.
            answered: what responses of this run covered.
        """
        now, sparse = self._clock(), list(sessions)
        waiting = []
        for attempt in self.known():
            if attempt.kind is not AttemptKind.SPARSE:
                continue
            if not any(attempt.interval.overlaps(one) for one in sparse):
                self._ledger.attempts.clear(self._key, attempt.interval, attempt.kind)
            elif not attempt.is_due(now) or not answered.covers(attempt.interval):
                waiting.append(attempt.interval)
        for one in sparse:
            if wanted.clip(one) and not any(interval.covers(one) for interval in waiting):
                self.left_open(one, AttemptKind.SPARSE, _SPARSE)

    def confirm_sparse(self, rows_per_session: Mapping[date, int]) -> None:
        """Record sparse sessions that have as many bars after being requested once more."""
        self._ledger.confirmed.record(self._key, rows_per_session, self._clock())

    def _record(
        self,
        interval: Interval,
        kind: AttemptKind,
        text: str,
        *,
        code: int | None = None,
        lasts_s: float = 0.0,
        due_at: datetime | None = None,
    ) -> None:
        at = self._clock()
        if due_at is None and lasts_s:
            due_at = at + timedelta(seconds=lasts_s)
        elif due_at is None:
            before = (
                attempt.failures
                for attempt in self.known()
                if attempt.kind is kind
                and (kind in SERIES_WIDE or attempt.interval.overlaps(interval))
            )
            due_at = at + retry_in(kind, 1 + max(before, default=0))
        self._ledger.attempts.record(
            self._key, interval, kind, error=text, code=code, next_try_at=due_at, at=at
        )
