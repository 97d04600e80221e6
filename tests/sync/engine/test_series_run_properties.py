"""Coverage stays proved and requests end, whatever mutations a gateway's responses carry."""

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from ktrdr_pipelines.domain.bars import bars_between, micros
from ktrdr_pipelines.domain.calendars.registry import calendar_named
from ktrdr_pipelines.domain.calendars.sessions import interval_between
from ktrdr_pipelines.domain.intervals import Interval, IntervalSet
from ktrdr_pipelines.domain.planning.responses import BarRequest, NoData
from ktrdr_pipelines.domain.timeframes import Timeframe
from ktrdr_pipelines.errors import (
    ConnectionLostError,
    GatewayError,
    GatewayTimeoutError,
    RequestRejectedError,
)
from ktrdr_pipelines.store.layout import create_store
from ktrdr_pipelines.sync.runner import Job
from tests.support.examples import UNSHRUNK, examples
from tests.support.fake_gateway import (
    FakeGateway,
    dense_keys,
    instrument_of,
    moment_of,
    series_of,
    true_bars_of,
    true_daily_bars,
    utc,
)
from tests.support.loading import Harness, World

FIRST = date(2024, 10, 7)
MOST_PER_SESSION = 12
"""Requests for one session of the thinnest market under the worst gateway, with room to spare."""


@dataclass
class Mutations:
    """Mutates responses by a list, one a request, and returns later ones unchanged."""

    sequence: list[str]
    cuts: list[int]
    request_count: int = field(default=0)

    def __call__(self, request: BarRequest, bars: pa.Table) -> pa.Table | NoData | GatewayError:
        number = self.request_count
        mutation = self.sequence[number] if number < len(self.sequence) else "unchanged"
        cut = self.cuts[self.request_count % len(self.cuts)]
        self.request_count += 1
        match mutation:
            case "left" | "right" | "both" | "nothing":
                left, right = _ends_cut(mutation, cut, bars.num_rows)
                return bars.slice(left, max(0, bars.num_rows - left - right))
            case "lost":
                return ConnectionLostError("bars", reason="the connection was lost")
            case "timeout":
                return GatewayTimeoutError("bars", reason="no answer")
            case "rejected":
                return RequestRejectedError("bars", reason="321")
        return bars

    def keep_right_ends(self) -> None:
        """Cut the left end of a response wherever its right end would be cut."""
        self.sequence = [
            "left" if mutation in {"right", "both"} else mutation for mutation in self.sequence
        ]


def _ends_cut(mutation: str, cut: int, rows: int) -> tuple[int, int]:
    """Return how many bars a mutation hides at each end."""
    cuts = {"left": (cut, 0), "right": (0, cut), "both": (cut, cut), "nothing": (rows, 0)}
    return cuts[mutation]


@dataclass(frozen=True)
class Case:
    """A series with a random pattern of trades, and an interval of it."""

    calendar: str
    timeframe: Timeframe
    days: int
    dropped_sessions: frozenset[int]
    now: datetime | None
    seed: int
    density: float
    skip: int


def cases(*, open_session: bool = False) -> st.SearchStrategy[Case]:
    """Make small cases of every timeframe and calendar."""
    timeframes = st.sampled_from(list(Timeframe))
    nows = st.datetimes(datetime(2024, 10, 9), datetime(2024, 12, 1))  # noqa: DTZ001
    return st.builds(
        Case,
        st.sampled_from(["XNYS.RTH", "XNYS.ETH", "FX"]),
        timeframes,
        st.integers(2, 40),
        st.frozensets(st.integers(0, 40), max_size=12),
        nows.map(lambda at: at.replace(tzinfo=utc(2024, 1, 1).tzinfo))
        if open_session
        else st.none(),
        st.integers(0, 1000),
        st.sampled_from([0.05, 0.3, 0.7, 0.95, 1.0]),
        st.integers(0, 20),
    )


def keys_in(case: Case) -> np.ndarray:
    """Return the timestamps of a case's trades: sessions and single bars are missing."""
    calendar = calendar_named(case.calendar)
    first, end = FIRST - timedelta(days=case.skip), FIRST + timedelta(days=case.days + 10)
    if case.timeframe is Timeframe.D1:
        end = date(2026, 6, 1)
    keys = dense_keys(case.calendar, case.timeframe, first, end)
    traded = np.random.default_rng(case.seed).random(len(keys)) < case.density
    traded |= keys > micros(utc(2025, 3, 1))
    day = keys.astype("datetime64[us]") if not case.timeframe.is_intraday else None
    dates = day.astype("datetime64[D]") if day is not None else calendar.days_of(keys)
    number = (dates - np.datetime64(FIRST)).astype(int)
    return keys[traded & ~np.isin(number, list(case.dropped_sessions))]


def world_of(case: Case, folder: Path) -> World:
    """Make the world of a case; the gateway also has later daily bars, as evidence of trading."""
    calendar = calendar_named(case.calendar)
    instrument = instrument_of(case.calendar)
    wanted = interval_between(
        calendar, case.timeframe, FIRST, FIRST + timedelta(days=max(case.days, 7))
    )
    key = (instrument.symbol, case.timeframe)
    true_bars = {key: true_bars_of(keys_in(case), case.timeframe, calendar)}
    if case.timeframe is not Timeframe.D1:
        life = date(2025, 3, 2), date(2026, 6, 1)
        true_bars[key[0], Timeframe.D1] = true_daily_bars(
            true_bars[key].bars, case.timeframe, case.calendar, life
        )
    gateway = FakeGateway(true_bars, case.now or utc(2025, 6, 1, 3))
    return World(
        Harness(create_store(folder), gateway), series_of(instrument, case.timeframe), wanted
    )


def oldest_of(world: World) -> datetime | None:
    """Return the moment from which the oldest bar trades, or None without bars."""
    opens = world.harness.true_bars(world.series).opens
    return moment_of(opens[0]) if len(opens) else None


def most_requests(world: World) -> int:
    """Return how many requests are more than any case can need."""
    days = (world.wanted.end - world.wanted.start).days
    return MOST_PER_SESSION * days + 40


def mutations(*kinds: str) -> st.SearchStrategy[Mutations]:
    """Return sequences of mutations."""
    return st.builds(
        Mutations,
        st.lists(st.sampled_from(["unchanged", *kinds]), max_size=60),
        st.lists(st.integers(1, 200), min_size=1, max_size=7),
    )


@given(case=cases())
@examples(40, phases=UNSHRUNK)
def test_any_market_is_stored_as_it_was(case: Case, folders: Iterator[Path]) -> None:
    """All bars of unchanged responses are stored and explained, for any pattern of trades.

    A response that seems to lack bars is requested once more, and never again.
    """
    world = world_of(case, next(folders))
    world.load()
    world.check()
    assert world.harness.request_count <= most_requests(world)
    report = world.load_until_confirmed()
    assert report.is_complete, report.summary
    world.check_complete()
    request_count = world.harness.request_count
    world.load()
    assert world.harness.request_count == request_count


@given(case=cases(open_session=True))
@examples(40, phases=UNSHRUNK)
def test_an_open_session_is_never_taken_for_done(case: Case, folders: Iterator[Path]) -> None:
    """At any moment of a session only whole bars are stored, and later ones still come."""
    world = world_of(case, next(folders))
    world.load()
    world.check()
    world.harness.gateway.time += timedelta(hours=1, minutes=7, seconds=31)
    world.load()
    world.check()
    world.harness.gateway.time = utc(2025, 6, 1, 3)
    assert world.load_until_confirmed().is_complete
    world.check_complete()


QUIET_AT_BOTH_ENDS = Case(
    calendar="FX",
    timeframe=Timeframe.M30,
    days=3,
    dropped_sessions=frozenset({1, 2, 3, 4, 15, 23, 26, 29}),
    now=None,
    seed=0,
    density=0.05,
    skip=0,
)
"""A session without bars at either end, between empty ones: each end is confirmed alone."""


ONCE_SPARSE = Case(
    calendar="FX",
    timeframe=Timeframe.H4,
    days=23,
    dropped_sessions=frozenset({8, 12, 30, 32}),
    now=None,
    seed=0,
    density=0.95,
    skip=0,
)
"""A steady market with a session of three bars instead of seven, which is requested once more."""


@given(case=cases(), mutation=mutations("left", "right", "both"))
@example(case=QUIET_AT_BOTH_ENDS, mutation=Mutations([], [1]))
@example(case=ONCE_SPARSE, mutation=Mutations(["left"], [100, 61, 100]))
@examples(40, phases=UNSHRUNK)
def test_short_responses_lose_nothing(
    case: Case, mutation: Mutations, folders: Iterator[Path]
) -> None:
    """What a response left out at either end is requested again, a limited number of times.

    Where a market pauses within sessions, a response that lacks the last bars before a close looks
    like one of a quiet end, which one response covers: there only the other end is cut.
    """
    assume(case.density == 1.0 or not {"right", "both"} & set(mutation.sequence))
    world = world_of(case, next(folders))
    world.harness.gateway.mutate = mutation
    world.load()
    world.check()
    assert world.harness.request_count <= most_requests(world)
    world.load()
    world.check()
    world.harness.gateway.mutate = None
    assert world.load_until_confirmed().is_complete
    world.check_complete()


@given(
    case=cases(),
    mutation=mutations("left", "right", "both", "nothing", "lost", "timeout", "rejected"),
    head=st.booleans(),
)
@examples(40, phases=UNSHRUNK)
def test_nothing_false_is_covered_by_failures(
    case: Case, mutation: Mutations, head: bool, folders: Iterator[Path]
) -> None:
    """Failures and single empty responses cover nothing; later responses complete the range.

    As in ``test_short_responses_lose_nothing``, only steady markets get responses without the last
    bars before a close.
    """
    if case.density < 1.0:
        mutation.keep_right_ends()
    world = world_of(case, next(folders))
    gateway = world.harness.gateway
    gateway.head_at = oldest_of(world) if head else None
    gateway.mutate = mutation
    for _ in range(5):
        try:
            report = world.load()
        except GatewayError:
            continue
        world.check()
    gateway.mutate = None
    report = world.load_until_confirmed()
    assert report.is_complete, report.summary
    world.check_complete()
    assert world.harness.request_count <= 3 * most_requests(world)


@given(case=cases(), head=st.booleans())
@examples(40, phases=UNSHRUNK)
def test_data_that_begin_late_are_all_found(
    case: Case, head: bool, folders: Iterator[Path]
) -> None:
    """All bars are stored though requests that reach past the oldest bar get no bars."""
    case = Case(
        case.calendar, case.timeframe, case.days, frozenset(), None, case.seed, 1.0, -(case.skip)
    )
    world = world_of(case, next(folders))
    gateway = world.harness.gateway
    gateway.nothing_past_oldest = True
    gateway.head_at = oldest_of(world) if head else None
    report = world.load_until_confirmed()
    assert report.is_complete, report.summary
    world.check()
    true_bars = bars_between(world.harness.true_bars(world.series).bars, *_ends(world))
    assert world.harness.store.read(world.series).equals(true_bars)
    assert world.harness.request_count <= most_requests(world)


def _ends(world: World) -> tuple[datetime, datetime]:
    return world.wanted.start, world.wanted.end


@given(case=cases(), stop=st.integers(0, 30), kind=st.sampled_from([0, 1, 2]))
@examples(30, phases=UNSHRUNK)
def test_a_stop_at_any_request_loses_nothing(
    case: Case, stop: int, kind: int, folders: Iterator[Path]
) -> None:
    """A cancelled or broken run keeps the bars of its responses; a repeat requests the rest."""
    error = [asyncio.CancelledError, KeyboardInterrupt, MemoryError][kind]
    whole = world_of(case, next(folders))
    whole.load()
    world = world_of(case, next(folders))

    is_stopped = False

    async def break_off(_: BarRequest) -> None:
        nonlocal is_stopped
        if is_stopped or world.harness.request_count <= stop:
            return
        is_stopped = True  # once, as a signal or a full memory comes
        if error is asyncio.CancelledError:
            await world.harness.cancel()
        raise error

    world.harness.gateway.before_response = break_off
    if whole.harness.request_count > stop:
        with pytest.raises(error):
            world.load()
    world.check()
    world.harness.gateway.before_response = None
    world.harness.gateway.time += timedelta(hours=1)
    world.load()
    world.check()
    spare = 6 + 6 + 2
    assert world.harness.request_count <= whole.harness.request_count + spare
    report = world.load_until_confirmed()
    assert report.is_complete, report.summary


@given(
    case=cases(),
    mutation=mutations("left", "right", "both", "nothing", "lost", "timeout", "rejected"),
    low=st.floats(0, 0.9),
    length=st.floats(0.05, 1.0),
)
@examples(25, phases=UNSHRUNK)
def test_a_refresh_takes_nothing_back(
    case: Case, mutation: Mutations, low: float, length: float, folders: Iterator[Path]
) -> None:
    """No response to a refresh reduces coverage or stored bars."""
    world = world_of(case, next(folders))
    world.load()
    before, bars = (
        world.harness.store.coverage(world.series),
        world.harness.store.read(world.series),
    )
    span = world.wanted.length
    start = world.wanted.start + low * span
    interval = Interval(start, min(start + length * span, world.wanted.end))
    world.harness.gateway.mutate = mutation
    try:
        world.harness.run(Job(world.series, wanted=IntervalSet([interval]), refresh=True))
    except GatewayError:
        assert mutation.sequence
    world.check()
    after = world.harness.store.coverage(world.series)
    assert not before.bars - after.bars
    now = world.harness.gateway.time
    assert not before.covered(now) - after.covered(now)
    assert world.harness.store.read(world.series).equals(bars)
