"""What is found out of one series: its gaps with their reasons, and until when that holds.

Not here: looking at files and ledger, what is kept between looks (``load.gapbook``), the decisions
(``core.completeness``).
"""

from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime

from ktrdr_pipelines.core.bars import moment
from ktrdr_pipelines.core.completeness import Gap, GapReason, find_gaps, next_close
from ktrdr_pipelines.core.coverage import REFUTABLE, Emptiness, ProofKind
from ktrdr_pipelines.core.disagreement import Disagreement
from ktrdr_pipelines.core.instruments import Series
from ktrdr_pipelines.core.intervals import IntervalSet, between
from ktrdr_pipelines.core.sessions import SessionCalendar
from ktrdr_pipelines.core.spanarrays import span_arrays
from ktrdr_pipelines.errors import StoreError
from ktrdr_pipelines.load.holdings import Holding
from ktrdr_pipelines.load.modes import first_stamp
from ktrdr_pipelines.load.standings import Known, claims_of, standing_of
from ktrdr_pipelines.store.attempts import Attempt, AttemptKind

_FOR_EVER = datetime.max.replace(tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class SeriesGaps:
    """One series as it stands; all intervals are on the stamp axis.

    ``gaps`` are neither settled nor explained; ``waiting`` is due of sessions that are still open.
    ``settled_until`` is the end of the newest settled stretch; ``first`` and ``last`` are session
    dates of bars held; ``attempts`` are the tries that settled nothing. Before ``expected_from``
    nothing is expected. ``fresh_from`` is the bar timestamp from which on the series is kept
    fresh, None where no save has said it yet. ``disputed`` are ranges that are explained in spite
    of held data, or by a person's word, as far as that has not expired; ``disagreements`` held bars
    that came again at other prices, ``volume_jumps`` bars with volumes in another unit. ``error``
    says why nothing else could be learned.
    """

    series: Series
    gaps: tuple[Gap, ...] = ()
    waiting: IntervalSet = field(default_factory=IntervalSet)
    rows: int = 0
    settled_until: datetime | None = None
    first: date | None = None
    last: date | None = None
    attempts: tuple[Attempt, ...] = ()
    expected_from: datetime | None = None
    disputed: tuple[Emptiness, ...] = ()
    disagreements: tuple[Disagreement, ...] = ()
    volume_jumps: tuple[Disagreement, ...] = ()
    fresh_from: datetime | None = None
    error: StoreError | None = None

    @property
    def is_blocked(self) -> bool:
        """Say whether the gateway has refused some of it for want of a permission."""
        return bool(self.blocks)

    def explained_as(self, kind: ProofKind) -> tuple[Emptiness, ...]:
        """Return the disputed, or the acknowledged, ranges."""
        return tuple(one for one in self.disputed if one.kind is kind)

    @property
    def blocks(self) -> tuple[Attempt, ...]:
        """The tries that were refused for want of a permission, the newest last."""
        found = [one for one in self.attempts if one.kind is AttemptKind.BLOCKED]
        return tuple(sorted(found, key=lambda attempt: attempt.last_at))

    @property
    def missing(self) -> IntervalSet:
        """The stretches of all gaps."""
        return IntervalSet(gap.stamps for gap in self.gaps)


@dataclass(frozen=True, slots=True)
class Page:
    """What was found out of a series, from what, and until when it holds."""

    series: Series
    holding: Holding
    known: Known
    made_at: datetime
    good_until: datetime
    found: SeriesGaps

    def holds(self, series: Series, holding: Holding, known: Known, *, now: datetime) -> bool:
        """Say whether what was found out before is what would be found out now."""
        return (
            self.holding is holding
            and self.series == series
            and self.known == known
            and self.made_at <= now < self.good_until
        )


def written(
    series: Series, calendar: SessionCalendar, holding: Holding, known: Known, *, now: datetime
) -> Page:
    """Find out how a series stands."""
    spans = span_arrays(calendar, series.timeframe)
    standing = standing_of(series, calendar, holding, known, now=now)
    gaps = find_gaps(spans, standing, now, claims_of(holding, known, now))
    ends = standing.settled.ends
    found = SeriesGaps(
        series,
        gaps,
        rows=holding.rows,
        settled_until=moment(int(ends[-1])) if len(ends) else None,
        first=holding.first,
        last=holding.last,
        attempts=known.attempts,
        expected_from=moment(standing.explained_to),
        disputed=tuple(
            replace(one, interval=part)
            for one in sorted(holding.proofs)
            if one.kind not in REFUTABLE and (part := one.valid_part(now)) is not None
        ),
        disagreements=known.disagreements,
        volume_jumps=known.volume_jumps,
        fresh_from=known.fresh_from,
    )
    changes = (next_close(spans, now), holding.next_expiry(now))
    good_until = min((at for at in changes if at is not None), default=_FOR_EVER)
    return Page(series, holding, known, now, good_until, found)


def of_unknown_sessions(
    series: Series, calendar: SessionCalendar, holding: Holding, known: Known, *, now: datetime
) -> SeriesGaps:
    """Say that all of a series is open whose sessions the gateway has not told yet."""
    wanted = between(first_stamp(series, calendar), now)
    tries = [one.next_try_at for one in known.attempts if one.next_try_at is not None]
    gap = wanted and Gap(
        wanted,
        sessions=0,
        bars=0,
        reason=GapReason.MISSING,
        detail="its sessions are not known until the gateway tells them: a load asks first",
        next_try_at=max(tries, default=None),
    )
    return SeriesGaps(
        series,
        (gap,) if gap else (),
        rows=holding.rows,
        first=holding.first,
        last=holding.last,
        attempts=known.attempts,
        fresh_from=known.fresh_from,
    )
