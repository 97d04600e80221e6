"""What a load says while it runs, and when it has ended.

Not here: rendering (``cli``), Dagster events (``defs``).
"""

from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Protocol

from ktrdr_pipelines.domain.instruments import Series
from ktrdr_pipelines.domain.intervals import IntervalSet
from ktrdr_pipelines.domain.plausibility import Disagreement
from ktrdr_pipelines.errors import GatewayError, KtrdrError


@dataclass(frozen=True, slots=True)
class SeriesReport:
    """How the load of one series ended.

    All intervals are on the stamp axis. ``unexplained`` is due and neither covered nor excused;
    ``waiting`` belongs to a session that is still open, and nothing failed there;
    ``before_listing`` lies before the gateway's oldest data. ``failures`` holds what single
    requests met after all tries; ``error`` is what kept the series from being worked on at all.
    ``now`` is the gateway's time at the end. ``deferred`` is deferred until ``next_try_at`` after
    failed attempts; it may belong to an open session. ``not_refreshed`` was to be requested again,
    could not be had, and stands as it was. ``sparse`` are sparse sessions: they are covered and
    hold far fewer bars than their neighbours; they are requested once more later. ``unconfirmed``
    is the part of
    ``unexplained`` that came without bars and waits for another response; ``confirmed_at`` is when
    the first of it can be confirmed. ``disagreements`` are held bars that came again at other
    prices; ``volume_jumps`` are bars whose volumes are in another unit than those beside them,
    which makes nothing incomplete.
    """

    series: Series
    requests: int = 0
    rows: int = 0
    added: int = 0
    revised: int = 0
    unexplained: IntervalSet = field(default_factory=IntervalSet)
    waiting: IntervalSet = field(default_factory=IntervalSet)
    before_listing: IntervalSet = field(default_factory=IntervalSet)
    failures: tuple[GatewayError, ...] = ()
    error: KtrdrError | None = None
    now: datetime | None = None
    deferred: IntervalSet = field(default_factory=IntervalSet)
    next_try_at: datetime | None = None
    not_refreshed: IntervalSet = field(default_factory=IntervalSet)
    sparse: IntervalSet = field(default_factory=IntervalSet)
    unconfirmed: IntervalSet = field(default_factory=IntervalSet)
    confirmed_at: datetime | None = None
    disagreements: tuple[Disagreement, ...] = ()
    volume_jumps: tuple[Disagreement, ...] = ()

    def then(self, later: "SeriesReport") -> "SeriesReport":
        """Join the reports of two loads of one series, one after the other: the end counts."""
        return replace(
            later,
            requests=self.requests + later.requests,
            rows=self.rows + later.rows,
            added=self.added + later.added,
            revised=self.revised + later.revised,
            failures=(*self.failures, *later.failures),
            error=later.error or self.error,
        )

    @property
    def is_complete(self) -> bool:
        """Whether nothing that is due is unexplained or doubtful.

        All came that was requested again. What an open session lacks by now may still come,
        unless requests for it failed.
        """
        left = self.unexplained or self.deferred or self.not_refreshed or self.sparse
        return not left and not self.disagreements and self.error is None

    @property
    def summary(self) -> str:
        """One line for a person."""
        if self.error is not None:
            return f"{self.series}: {self.error}"
        return (
            f"{self.series}: {self._state}; {self.requests} requests, {self.rows} bars "
            f"answered, {self.added} new, {self.revised} revised"
        )

    @property
    def _state(self) -> str:
        if self.unexplained:
            state = f"{len(self.unexplained)} gaps unexplained"
        elif self.not_refreshed:
            state = "not all refreshed"
        else:
            state = "the open session is missing" if self.deferred else self._unconfirmed_text
        if self.unconfirmed and self.confirmed_at:
            state += (
                f", {len(self.unconfirmed)} came without bars and can be confirmed at "
                f"{self.confirmed_at:%Y-%m-%d %H:%MZ}"
            )
        elif self.deferred and self.next_try_at:
            state += f", deferred until {self.next_try_at:%Y-%m-%d %H:%MZ} after failed attempts"
        return f"{state}, session still open" if self.waiting else state

    @property
    def _unconfirmed_text(self) -> str:
        if self.disagreements:
            return "held bars came again at other prices"
        count = len(self.sparse)
        return f"{count} sparse sessions to be requested once more" if count else "complete"


class Progress(Protocol):
    """Who listens to a running load; calls come from the load's own thread."""

    def planned(self, series: Series, requests: int) -> None:
        """Say that so many more requests are to be made."""

    def answered(self, series: Series, rows: int) -> None:
        """Say that one request has been dealt with, and how many bars it gave."""

    def saved(self, series: Series) -> None:
        """Say that what was covered so far is on disk."""

    def noted(self, series: Series, text: str) -> None:
        """Say something that a person may want to know."""

    def noticed(self, text: str) -> None:
        """Say something that a person should know of the gateway; each connection says it once."""

    def waiting(self, text: str, until: datetime) -> None:
        """Say what is waited for, and when that is over at the latest; others may go on."""


class Quiet:
    """A listener that listens to nothing."""

    def planned(self, series: Series, requests: int) -> None:
        """Ignore it."""

    def answered(self, series: Series, rows: int) -> None:
        """Ignore it."""

    def saved(self, series: Series) -> None:
        """Ignore it."""

    def noted(self, series: Series, text: str) -> None:
        """Ignore it."""

    def noticed(self, text: str) -> None:
        """Ignore it."""

    def waiting(self, text: str, until: datetime) -> None:
        """Ignore it."""
