"""What files and ledger together say of a series, as values that completeness is computed from.

Not here: the computing (``core.completeness``), what is kept between looks (``load.gapbook``).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta

import numpy as np

from ktrdr_pipelines.core.bars import micros, moment
from ktrdr_pipelines.core.completeness import (
    Cause,
    Claimed,
    GapReason,
    Standing,
    closed_count,
)
from ktrdr_pipelines.core.gaps import bar_lag, first_stamp_of
from ktrdr_pipelines.core.instruments import Series
from ktrdr_pipelines.core.intervals import Interval, IntervalSet, between
from ktrdr_pipelines.core.sessions import SessionCalendar, stamps_between
from ktrdr_pipelines.core.spanarrays import SpanArrays
from ktrdr_pipelines.core.stretches import EVER_US, Stretches, joined, stretches_of, without
from ktrdr_pipelines.load.facts import silent_stamps
from ktrdr_pipelines.load.holdings import Holding
from ktrdr_pipelines.load.modes import first_stamp
from ktrdr_pipelines.store.attempts import Attempt, AttemptKind
from ktrdr_pipelines.store.layout import store_origin
from ktrdr_pipelines.store.ledger import SilenceRecord, series_key
from ktrdr_pipelines.store.parquet import BarStore

_REASONS = {
    AttemptKind.ERROR: GapReason.FAILED,
    AttemptKind.PROBED: GapReason.UNPROVED,
    AttemptKind.NO_DATA: GapReason.NO_DATA,
    AttemptKind.BLOCKED: GapReason.BLOCKED,
    AttemptKind.UNKNOWN: GapReason.FAILED,
}
_WEEKS = timedelta(days=14)
_EVER = datetime(1900, 1, 1, tzinfo=UTC)
_FOR_EVER = datetime.max.replace(tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Known:
    """What the ledger knows of a series beside its files."""

    attempts: tuple[Attempt, ...]
    head: datetime | None
    silences: tuple[SilenceRecord, ...]
    confirmed: Mapping[date, int]
    fresh_from: datetime | None = None

    def next_expiry(self, now: datetime) -> datetime | None:
        """Give when the next silence comes to be too old to be believed, or None."""
        return min((at for one in self.silences if (at := one.expires_at) > now), default=None)


class Ledgered:
    """What the ledger knows of all series, each table read once."""

    def __init__(self, store: BarStore, gateway: str) -> None:
        ledger, origin = store.ledger, store_origin(store.layout)
        self._attempts = ledger.all_attempts()
        self._heads = ledger.heads(gateway)
        self._silences = ledger.silences(gateway)
        self._confirmed = ledger.all_confirmed()
        self._fresh_from = ledger.kept_fresh()
        self._pinned = ledger.pinned_contracts(origin) if origin else {}

    def of(self, series: Series, holding: Holding) -> Known:
        """Give what is known of one series."""
        key = series_key(series)
        contract = holding.contract_id or self._pinned.get(series.symbol)
        what = series.instrument.what_to_show.value
        return Known(
            tuple(self._attempts.get(key, ())),
            self._heads.get((contract, what)) if contract else None,
            self._silences.get((contract, what), ()) if contract else (),
            self._confirmed.get(key, {}),
            self._fresh_from.get(key),
        )


def standing_of(
    series: Series, calendar: SessionCalendar, holding: Holding, known: Known, *, now: datetime
) -> Standing:
    """Say how a series stands at a moment."""
    listed = first_stamp_of(calendar, series.timeframe, known.head) if known.head else None
    return Standing(
        settled=_with_silences(series, calendar, holding, known, now=now),
        wanted_from=micros(first_stamp(series, calendar)),
        wanted_to=last_stamp(series, calendar),
        listed_from=micros(listed) if listed else None,
        oldest_bar=holding.oldest_bar,
        suspects=np.array(
            [place for place, day, rows in holding.suspects if known.confirmed.get(day) != rows],
            dtype=np.int64,
        ),
    )


def _with_silences(
    series: Series, calendar: SessionCalendar, holding: Holding, known: Known, *, now: datetime
) -> Stretches:
    """Give what needs no asking: settled, or found silent before the oldest bar that is held."""
    settled = holding.settled(now)
    if holding.oldest_bar is None or not known.silences:
        return settled
    silent = stretches_of(
        part
        for one in known.silences
        if one.is_valid(now)
        for part in silent_stamps(calendar, series.timeframe, one.first, one.end)
        if micros(part.end) <= holding.oldest_bar
    )
    both = (np.concatenate(pair) for pair in zip(settled, silent, strict=True))
    return joined(np.stack(list(both), axis=1))


def claims_of(holding: Holding, known: Known, now: datetime) -> Sequence[Claimed]:
    """Say what is known of stretches, should they be gaps; the last said weighs most."""
    expired = [
        Claimed(part, Cause(GapReason.EXPIRED, f"proved empty at {at:%Y-%m-%d}, too long ago"))
        for part, at in holding.expired(now)
    ]
    tried = sorted(known.attempts, key=_weight)
    return [*expired, *(Claimed(_stretch(one), _cause(one)) for one in tried)]


def _stretch(attempt: Attempt) -> Interval:
    """Give what a try says something about: all of the series where it concerns the series."""
    return Interval(_EVER, _FOR_EVER) if attempt.is_series_wide else attempt.interval


def _weight(attempt: Attempt) -> tuple[bool, datetime]:
    return attempt.kind is AttemptKind.BLOCKED, attempt.last_at


def _cause(attempt: Attempt) -> Cause:
    return Cause(_REASONS[attempt.kind], attempt.error, attempt.next_try_at)


def last_stamp(series: Series, calendar: SessionCalendar) -> int | None:
    """Give where a series ends on the stamp axis, in microseconds, or None where it goes on."""
    end = series.instrument.end
    if end is None:
        return None
    return micros(stamps_between(calendar, series.timeframe, end, end + _WEEKS).start)


def waiting_of(
    spans: SpanArrays, settled: Stretches, now: datetime, *, until: int | None = None
) -> IntervalSet:
    """Give what is due of open sessions and not settled; after ``until`` nothing is."""
    if spans.trading is None:
        return IntervalSet()
    until = min(micros(now - bar_lag()), EVER_US if until is None else until)
    low = closed_count(spans, now)
    high = int(np.searchsorted(spans.spans.starts, until, side="left"))
    if low >= high or (len(settled.ends) and settled.ends[-1] >= until):
        return IntervalSet()
    ends = np.minimum(spans.spans.ends[low:high], until)
    pieces = without(Stretches(spans.spans.starts[low:high], ends), settled)
    length = spans.timeframe.seconds * 1_000_000
    parts = (
        between(moment(int(start)), moment(int(end)))
        for start, end in zip(pieces.starts, pieces.ends, strict=True)
        if end < until or end - start >= length
    )
    return IntervalSet(part for part in parts if isinstance(part, Interval))
