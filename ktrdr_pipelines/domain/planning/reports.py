"""What a load reports: its progress while it runs, and its result.

Not here: rendering (``cli``), Dagster events (``defs``).
"""

from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Protocol

from ktrdr_pipelines.domain.adjustments import Adjustment
from ktrdr_pipelines.domain.instruments import Series
from ktrdr_pipelines.domain.intervals import IntervalSet
from ktrdr_pipelines.domain.plausibility import Disagreement, DisagreementKind
from ktrdr_pipelines.errors import GatewayError, KtrdrError


@dataclass(frozen=True, slots=True)
class SeriesReport:
    """How the load of one series ended; all intervals are by bar timestamp.

    ``unexplained`` is due and neither covered nor excused; ``waiting`` belongs to a session that is
    still open, and no request for it failed; ``before_listing`` lies before the gateway's oldest
    data. ``failures`` holds the errors of single requests after all retries; ``error`` is what kept
    the series from being loaded at all. ``now`` is the gateway's time at the end. ``deferred`` is
    deferred until ``next_try_at`` after failed attempts; it may belong to an open session.
    ``not_refreshed`` was to be requested again, could not be obtained, and is unchanged.
    ``sparse`` are sparse sessions: they are covered, hold far fewer bars than their neighbours and
    are requested once more; where nothing is deferred, ``next_try_at`` is when. ``unconfirmed`` is
    the part of ``unexplained`` for which a response had no bars and another response is due;
    ``confirmed_at`` is when the first of it can be confirmed. ``no_data_until`` is when the next
    request is due if the gateway has no data of the instrument at all, else None.
    ``disagreements`` are held bars that were returned again at other prices; ``volume_jumps`` are
    bars whose volumes are in another unit than those beside them, which makes nothing incomplete.
    ``adjustments`` are those of the symbol that were found since the run of the load began.
    ``unconfirmed_bars`` are held on an unconfirmed price basis, and queries leave them out; 0 where
    none of them was wanted. ``unconfirmed_basis`` is the part of what is missing that such bars
    were returned for, and ``basis_due_at`` is when it is requested again.
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
    no_data_until: datetime | None = None
    disagreements: tuple[Disagreement, ...] = ()
    volume_jumps: tuple[Disagreement, ...] = ()
    adjustments: tuple[Adjustment, ...] = ()
    unconfirmed_bars: int = 0
    unconfirmed_basis: IntervalSet = field(default_factory=IntervalSet)
    basis_due_at: datetime | None = None

    def then(self, later: "SeriesReport") -> "SeriesReport":
        """Return one report of two loads of one series: counts are added, the later state holds."""
        return replace(
            later,
            requests=self.requests + later.requests,
            rows=self.rows + later.rows,
            added=self.added + later.added,
            revised=self.revised + later.revised,
            failures=(*self.failures, *later.failures),
            error=later.error or self.error,
            adjustments=tuple(dict.fromkeys((*self.adjustments, *later.adjustments))),
        )

    @property
    def is_complete(self) -> bool:
        """Whether nothing that is due is unexplained, sparse, deferred or disputed by newer bars.

        Everything to be refreshed was refreshed, and no bar is on an unconfirmed price basis. Bars
        that an open session lacks do not count, unless requests for them failed.
        """
        left = self.unexplained or self.deferred or self.not_refreshed or self.sparse
        is_open = bool(left) or bool(self.unconfirmed_bars)
        return not is_open and not self.disagreements and self.error is None

    @property
    def unit_changes(self) -> tuple[Disagreement, ...]:
        """Those of ``disagreements`` that look like a change of unit."""
        return tuple(one for one in self.disagreements if one.kind is DisagreementKind.UNIT)

    @property
    def summary(self) -> str:
        """One line for the user."""
        if self.error is not None:
            return f"{self.series}: {self.error}"
        text = (
            f"{self.series}: {self._state}; {self.requests} requests, {self.rows} bars "
            f"returned, {self.added} new, {self.revised} revised"
        )
        if self.unconfirmed_bars:
            text += f"; {self.unconfirmed_bars} bars on an unconfirmed price basis"
        return text

    @property
    def _state(self) -> str:
        if self.unexplained:
            state = f"{len(self.unexplained)} gaps unexplained"
        elif self.not_refreshed:
            state = "not all refreshed"
        elif self.deferred:
            state = "bars of the open session are missing"
        elif self.disagreements:
            state = "held bars were returned again at other prices"
        elif self.sparse:
            state = f"{len(self.sparse)} sparse sessions to be requested once more"
            if self.next_try_at:
                state += f" at {self.next_try_at:%Y-%m-%d %H:%MZ}"
        else:
            state = "complete"
        if self.unconfirmed and self.confirmed_at:
            state += (
                f", {len(self.unconfirmed)} returned without bars can be confirmed at "
                f"{self.confirmed_at:%Y-%m-%d %H:%MZ}"
            )
        elif self.deferred and self.next_try_at:
            state += f", deferred until {self.next_try_at:%Y-%m-%d %H:%MZ} after failed attempts"
        return f"{state}, session still open" if self.waiting else state


class Progress(Protocol):
    """A listener to a running load; it is called from the load's own thread."""

    def planned(self, series: Series, requests: int) -> None:
        """Report that so many more requests are planned."""

    def answered(self, series: Series, rows: int) -> None:
        """Report that one request is done, and how many bars it returned."""

    def saved(self, series: Series) -> None:
        """Report that everything covered so far is on disk."""

    def noted(self, series: Series, text: str) -> None:
        """Report something about a series that the user may want to know."""

    def noticed(self, text: str) -> None:
        """Report something about the gateway that the user should know, once a connection."""

    def waiting(self, text: str, until: datetime) -> None:
        """Report what a load waits for, and until when at the latest; other series may proceed."""

    def ended(self, report: SeriesReport) -> None:
        """Report how one job ended, also if the whole load was stopped while it ran."""


class Quiet:
    """A listener that ignores everything."""

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

    def ended(self, report: SeriesReport) -> None:
        """Ignore it."""
