"""Proofs of empty ranges in the files: what refutes them, and how they are retracted."""

from collections.abc import Iterable
from datetime import UTC, date, datetime, timedelta
from typing import Any

import pyarrow as pa
import pytest

from ktrdr_pipelines.domain.bars import BAR_SCHEMA
from ktrdr_pipelines.domain.calendars.registry import calendar_named
from ktrdr_pipelines.domain.calendars.session_grid import session_grid
from ktrdr_pipelines.domain.calendars.sessions import interval_between, midnight, monday_of
from ktrdr_pipelines.domain.coverage import REFUTABLE, VOIDABLE, Coverage, Emptiness, ProofKind
from ktrdr_pipelines.domain.instruments import Series
from ktrdr_pipelines.domain.intervals import Interval, IntervalSet
from ktrdr_pipelines.domain.timeframes import Timeframe
from ktrdr_pipelines.store.bars.bar_store import BarStore, read_footer

RTH = calendar_named("XNYS.RTH")
DAY, WEEK = timedelta(days=1), timedelta(days=7)
MONDAY, TUESDAY, WEDNESDAY = date(2024, 6, 3), date(2024, 6, 4), date(2024, 6, 5)
NEXT_MONDAY = date(2024, 6, 10)
PROVED = datetime(2024, 6, 20, tzinfo=UTC)
M1, H1, D1, W1 = Timeframe.M1, Timeframe.H1, Timeframe.D1, Timeframe.W1


class ProofStore:
    """A store with proofs and bars by session date."""

    def __init__(self, store: BarStore, make: Any) -> None:
        self.store, self._make = store, make

    def series(self, timeframe: Timeframe) -> Series:
        series: Series = self._make.series(timeframe)
        return series

    def empty(
        self, timeframe: Timeframe, *days: date, kind: ProofKind = ProofKind.PLAIN
    ) -> IntervalSet:
        """Save confirmed empty ranges for the sessions of some dates; return their timestamps."""
        spans = self.spans(timeframe, days)
        proofs = tuple(Emptiness(part, PROVED, kind) for part in spans)
        series = self.series(timeframe)
        nothing = self._make.bars(series, [])
        coverage = Coverage(empty=proofs)
        self.store.save(series, self._make.identity(series), nothing, coverage)
        return spans

    def spans(self, timeframe: Timeframe, days: Iterable[date]) -> IntervalSet:
        """Return the timestamps of the sessions of some dates, or of their weeks."""
        return IntervalSet(self._each(timeframe, days))

    def _each(self, timeframe: Timeframe, days: Iterable[date]) -> list[Interval]:
        found: list[Interval] = []
        for day in days:
            first = monday_of(day) if timeframe is W1 else day
            part = interval_between(
                RTH, timeframe, first, first + (WEEK if timeframe is W1 else DAY)
            )
            found += [span.interval for span in session_grid(RTH, timeframe).spans_in(part)]
        return found

    def bars(
        self, timeframe: Timeframe, *days: date, volume: float | None = 100.0, count: int = 1
    ) -> None:
        """Save the first bars of the sessions of some dates."""
        series = self.series(timeframe)
        at = [
            span.start + n * timeframe.length
            for span in self._each(timeframe, days)
            for n in range(count)
        ]
        bars = self._make.bars(series, at)
        volumes = pa.array([volume] * len(at), pa.float64())
        bars = bars.set_column(6, BAR_SCHEMA.field("volume"), volumes)
        if volume == 0:  # as gateways write it: no volume, and no trade counted
            counts = pa.array([0] * len(at), pa.int32())
            bars = bars.set_column(8, BAR_SCHEMA.field("bar_count"), counts)
        assert bars.schema.names == BAR_SCHEMA.names
        coverage = self._make.covering(series, bars)
        self.store.save(series, self._make.identity(series), bars, coverage)

    def proved(self, timeframe: Timeframe) -> IntervalSet:
        """Return what is proved to be empty."""
        coverage = self.store.coverage(self.series(timeframe))
        return IntervalSet(proof.interval for proof in coverage.empty)


@pytest.fixture
def proofs_store(store: BarStore, make: Any) -> ProofStore:
    """Return an empty store."""
    return ProofStore(store, make)


# --- bars of another timeframe -------------------------------------------------------------------


@pytest.mark.parametrize("kind", sorted(REFUTABLE))
@pytest.mark.parametrize("timeframe", [Timeframe.M1, Timeframe.H1, Timeframe.H4])
def test_a_daily_bar_retracts_the_proof_of_an_empty_session(
    proofs_store: ProofStore, timeframe: Timeframe, kind: ProofKind
) -> None:
    """Of its own date; those of other dates stay."""
    proofs_store.empty(timeframe, MONDAY, TUESDAY, WEDNESDAY, kind=kind)
    proofs_store.bars(D1, TUESDAY)
    assert proofs_store.proved(timeframe) == proofs_store.spans(timeframe, [MONDAY, WEDNESDAY])


def test_an_intraday_bar_retracts_the_proof_of_an_empty_day(proofs_store: ProofStore) -> None:
    """One bar is enough."""
    proofs_store.empty(D1, MONDAY, TUESDAY)
    proofs_store.bars(M1, TUESDAY)
    assert proofs_store.proved(D1) == proofs_store.spans(D1, [MONDAY])


def test_an_intraday_bar_retracts_the_proof_of_another_timeframes_session(
    proofs_store: ProofStore,
) -> None:
    """An hour without a bar cannot have a minute with one."""
    proofs_store.empty(H1, MONDAY, TUESDAY)
    proofs_store.bars(M1, TUESDAY)
    assert proofs_store.proved(H1) == proofs_store.spans(H1, [MONDAY])


def test_a_retracted_proof_is_removed_from_the_file_and_bars_stay(proofs_store: ProofStore) -> None:
    """The footer has it no longer; the bars and their coverage do not change."""
    proofs_store.bars(H1, MONDAY, count=6)
    proofs_store.empty(H1, TUESDAY, WEDNESDAY)
    series = proofs_store.series(H1)
    bars, covered = proofs_store.store.read(series), proofs_store.store.coverage(series).bars
    proofs_store.bars(D1, TUESDAY)
    (path,) = proofs_store.store.layout.bar_files("AAPL", H1)
    said = read_footer(path).coverage
    assert IntervalSet(proof.interval for proof in said.empty) == proofs_store.spans(
        H1, [WEDNESDAY]
    )
    assert proofs_store.store.read(series).equals(bars)
    assert said.bars == covered
    assert proofs_store.store.rows_per_session(series) == {MONDAY: 6}


def test_a_bar_without_volume_retracts_nothing(proofs_store: ProofStore) -> None:
    """Gateways fill quiet time with flat bars."""
    empty = proofs_store.empty(H1, TUESDAY)
    proofs_store.bars(D1, TUESDAY, volume=0.0)
    assert proofs_store.proved(H1) == empty


def test_a_bar_of_unknown_volume_retracts_the_proof(proofs_store: ProofStore) -> None:
    """Currencies and indices have none."""
    proofs_store.empty(H1, TUESDAY)
    proofs_store.bars(D1, TUESDAY, volume=None)
    assert not proofs_store.proved(H1)


@pytest.mark.parametrize("kind", [ProofKind.DISPUTED, ProofKind.ACKNOWLEDGED])
def test_disputed_and_acknowledged_proofs_stay(proofs_store: ProofStore, kind: ProofKind) -> None:
    """They were recorded in spite of contradicting bars."""
    empty = proofs_store.empty(H1, TUESDAY, kind=kind)
    proofs_store.bars(D1, TUESDAY)
    assert proofs_store.proved(H1) == empty


def test_a_weekly_bar_retracts_only_the_proof_of_a_whole_empty_week(
    proofs_store: ProofStore,
) -> None:
    """It does not say on which day it traded."""
    proofs_store.bars(H1, MONDAY)
    empty = proofs_store.empty(H1, TUESDAY, WEDNESDAY)
    proofs_store.bars(W1, MONDAY)
    assert proofs_store.proved(H1) == empty


def test_a_weekly_bar_refutes_a_week_of_which_no_bar_is_held(proofs_store: ProofStore) -> None:
    """Another week stays proved."""
    week = [MONDAY + n * DAY for n in range(5)]
    proofs_store.bars(H1, date(2024, 5, 28))
    proofs_store.empty(H1, *week, NEXT_MONDAY)
    proofs_store.bars(W1, MONDAY)
    assert proofs_store.proved(H1) == proofs_store.spans(H1, [NEXT_MONDAY])


@pytest.mark.parametrize("timeframe", [M1, D1])
def test_a_bar_of_any_day_retracts_the_proof_of_its_empty_week(
    proofs_store: ProofStore, timeframe: Timeframe
) -> None:
    """A week in which a day traded is not empty."""
    proofs_store.empty(W1, MONDAY, NEXT_MONDAY)
    proofs_store.bars(timeframe, WEDNESDAY)
    assert proofs_store.proved(W1) == proofs_store.spans(W1, [NEXT_MONDAY])


def test_bars_of_another_symbol_retract_nothing(proofs_store: ProofStore, make: Any) -> None:
    """A proof is of one instrument."""
    empty = proofs_store.empty(H1, TUESDAY)
    other = make.series(D1, "MSFT")
    make.save(proofs_store.store, other, make.bars(other, [midnight(TUESDAY)]))
    assert proofs_store.proved(H1) == empty


def test_bars_of_its_own_timeframe_replace_a_proof_of_any_kind(proofs_store: ProofStore) -> None:
    """They are the session's bars."""
    for kind in ProofKind:
        proofs_store.empty(H1, TUESDAY, kind=kind)
        proofs_store.bars(H1, TUESDAY, count=7)
        assert not proofs_store.proved(H1)


def test_a_proof_is_retracted_in_a_store_whose_ledger_was_lost(proofs_store: ProofStore) -> None:
    """The files hold the proofs; the file index only repeats them."""
    proofs_store.empty(H1, TUESDAY)
    (path,) = proofs_store.store.layout.bar_files("AAPL", H1)
    proofs_store.store.ledger.files.remove([proofs_store.store.layout.relative(path)])
    proofs_store.bars(D1, TUESDAY)
    assert not proofs_store.proved(H1)


# --- retracting by kind and interval --------------------------------------------------------------


def test_proofs_of_the_named_kinds_are_retracted_where_they_lie(proofs_store: ProofStore) -> None:
    """Within the given intervals; the result is what was retracted."""
    days = [MONDAY + n * DAY for n in range(4)]
    for day, kind in zip(days, ProofKind, strict=True):
        proofs_store.empty(H1, day, kind=kind)
    everything = IntervalSet([interval_between(RTH, H1, MONDAY, NEXT_MONDAY)])
    taken = proofs_store.store.retract_proofs("AAPL", H1, everything, VOIDABLE)
    assert taken == proofs_store.spans(H1, days[1:3])
    assert proofs_store.proved(H1) == proofs_store.spans(H1, [days[0], days[3]])
    assert not proofs_store.store.retract_proofs("AAPL", H1, everything, VOIDABLE)


def test_a_part_of_a_proof_is_retracted(proofs_store: ProofStore) -> None:
    """What is left keeps its date and kind."""
    proofs_store.empty(D1, MONDAY, TUESDAY, WEDNESDAY, kind=ProofKind.VOIDABLE)
    tuesday = proofs_store.spans(D1, [TUESDAY])
    assert proofs_store.store.retract_proofs("AAPL", D1, tuesday, VOIDABLE) == tuesday
    left = proofs_store.store.coverage(proofs_store.series(D1)).empty
    assert [proof.interval for proof in left] == list(proofs_store.spans(D1, [MONDAY, WEDNESDAY]))
    assert {(proof.proved_at, proof.kind) for proof in left} == {(PROVED, ProofKind.VOIDABLE)}


def test_proofs_are_retracted_from_every_file(proofs_store: ProofStore) -> None:
    """Minutes have a file a year."""
    days = [date(2022, 6, 7), date(2023, 6, 6), TUESDAY]
    proofs_store.empty(M1, *days, kind=ProofKind.VOIDABLE)
    assert len(proofs_store.store.layout.bar_files("AAPL", M1)) == 3
    whole = IntervalSet([interval_between(RTH, M1, date(2022, 1, 1), date(2023, 12, 31))])
    taken = proofs_store.store.retract_proofs("AAPL", M1, whole, VOIDABLE)
    assert taken == proofs_store.spans(M1, days[:2])
    assert proofs_store.proved(M1) == proofs_store.spans(M1, [TUESDAY])


def test_no_file_is_written_where_nothing_is_retracted(proofs_store: ProofStore) -> None:
    """Inode and time of the file stay."""
    proofs_store.empty(H1, TUESDAY)
    (path,) = proofs_store.store.layout.bar_files("AAPL", H1)
    before = path.stat()
    everything = IntervalSet([interval_between(RTH, H1, MONDAY, NEXT_MONDAY)])
    monday = IntervalSet([interval_between(RTH, H1, MONDAY, TUESDAY)])
    assert not proofs_store.store.retract_proofs("AAPL", H1, everything, VOIDABLE)
    assert not proofs_store.store.retract_proofs("AAPL", H1, monday, REFUTABLE)
    assert not proofs_store.store.retract_proofs("AAPL", H1, IntervalSet(), REFUTABLE)
    assert not proofs_store.store.retract_proofs("AAPL", D1, everything, REFUTABLE)
    proofs_store.bars(D1, MONDAY)
    assert path.stat().st_ino == before.st_ino
    assert path.stat().st_mtime_ns == before.st_mtime_ns


@pytest.mark.parametrize("timeframe", [M1, H1, D1, W1])
def test_void_responses_retract_the_proofs_that_rest_on_them(
    proofs_store: ProofStore, timeframe: Timeframe
) -> None:
    """Statements are in real time: a day of one counts for every timeframe of its instrument."""
    away = date(2024, 7, 9)
    proofs_store.empty(timeframe, TUESDAY, away, kind=ProofKind.VOIDABLE)
    day = Interval(RTH.day_starts_at(TUESDAY), RTH.day_starts_at(WEDNESDAY))
    taken = proofs_store.store.retract_voidable("AAPL", timeframe, [day])
    assert taken == proofs_store.spans(timeframe, [TUESDAY])
    assert proofs_store.proved(timeframe) == proofs_store.spans(timeframe, [away])


@pytest.mark.parametrize("calendar", ["XNYS.RTH", "XTKS.RTH", "XASX.RTH", "FX"])
@pytest.mark.parametrize("timeframe", [D1, W1])
def test_void_responses_cut_no_day_and_no_week(
    store: BarStore, make: Any, calendar: str, timeframe: Timeframe
) -> None:
    """A part of a day could never be proved again, so whole days and weeks are retracted."""
    hours = calendar_named(calendar)
    series = make.series(timeframe, "AAPL", calendar)
    whole = interval_between(hours, timeframe, MONDAY, date(2024, 7, 15))
    proof = Emptiness(whole, PROVED, ProofKind.VOIDABLE)
    coverage = Coverage(empty=(proof,))
    store.save(series, make.identity(series), make.bars(series, []), coverage)
    for day in (date(2024, 6, 18), date(2024, 7, 4), date(2024, 7, 12)):
        interval = Interval(hours.day_starts_at(day), hours.day_starts_at(day + DAY))
        store.retract_voidable("AAPL", timeframe, [interval])
        left = IntervalSet(one.interval for one in store.coverage(series).empty)
        first = monday_of(day) if timeframe is W1 else day
        assert not left.clip(Interval(midnight(first), midnight(first) + timeframe.length))
        assert all(part.start == midnight(part.start.date()) for part in left)
        assert all(part.end == midnight(part.end.date()) for part in left)
        assert all(part.length % timeframe.length == timedelta(0) for part in left)
        taken = whole.length - sum((part.length for part in left), timedelta(0))
        assert taken <= 6 * timeframe.length


@pytest.mark.parametrize(
    ("kind", "is_taken"),
    [
        (ProofKind.PLAIN, False),
        (ProofKind.VOIDABLE, True),
        (ProofKind.DISPUTED, True),
        (ProofKind.ACKNOWLEDGED, False),
    ],
)
def test_only_proofs_that_rest_on_responses_without_bars_are_void(
    proofs_store: ProofStore, kind: ProofKind, *, is_taken: bool
) -> None:
    """Bars on both sides were seen, and the user's confirmation holds."""
    empty = proofs_store.empty(H1, TUESDAY, kind=kind)
    day = Interval(RTH.day_starts_at(TUESDAY), RTH.day_starts_at(WEDNESDAY))
    taken = proofs_store.store.retract_voidable("AAPL", H1, [day])
    assert taken == (empty if is_taken else IntervalSet())
    assert proofs_store.proved(H1) == (IntervalSet() if is_taken else empty)


# --- which days traded ---------------------------------------------------------------------------


def test_days_that_traded_have_bars_with_volume(proofs_store: ProofStore) -> None:
    """Of the given dates; a bar of unknown volume counts."""
    proofs_store.bars(H1, MONDAY, count=3)
    proofs_store.bars(H1, TUESDAY, volume=0.0, count=3)
    proofs_store.bars(H1, WEDNESDAY, volume=None)
    days = {MONDAY, TUESDAY, WEDNESDAY, date(2024, 6, 6)}
    assert proofs_store.store.traded_days(proofs_store.series(H1), days) == {MONDAY, WEDNESDAY}
    assert proofs_store.store.traded_days(proofs_store.series(H1), [WEDNESDAY]) == {WEDNESDAY}
    assert proofs_store.store.traded_days(proofs_store.series(H1), [TUESDAY]) == set()
    assert proofs_store.store.traded_days(proofs_store.series(H1), []) == set()
    assert proofs_store.store.traded_days(proofs_store.series(D1), days) == set()


def test_one_bar_with_volume_among_flat_ones_makes_a_day_traded(proofs_store: ProofStore) -> None:
    """The flat ones fill its quiet time."""
    proofs_store.bars(H1, TUESDAY, volume=0.0, count=6)
    proofs_store.bars(H1, TUESDAY, volume=5.0)
    assert proofs_store.store.traded_days(proofs_store.series(H1), [TUESDAY]) == {TUESDAY}


@pytest.mark.parametrize("timeframe", [M1, D1])
def test_days_that_traded_are_found_over_years(
    proofs_store: ProofStore, timeframe: Timeframe
) -> None:
    """In each file, from the first to the last date."""
    days = {date(2022, 6, 7), date(2023, 6, 6), TUESDAY}
    proofs_store.bars(timeframe, *sorted(days))
    assert proofs_store.store.traded_days(proofs_store.series(timeframe), days) == days


def test_a_weekly_bar_has_its_own_date(proofs_store: ProofStore) -> None:
    """That of its Monday."""
    proofs_store.bars(W1, MONDAY, NEXT_MONDAY)
    found = proofs_store.store.traded_days(proofs_store.series(W1), [MONDAY, TUESDAY, NEXT_MONDAY])
    assert found == {MONDAY, NEXT_MONDAY}
