"""Volumes in lots beside volumes in shares are reported once, and nothing else is."""

from collections.abc import Callable
from datetime import date, datetime, timedelta
from itertools import cycle

import numpy as np
import pyarrow as pa
import pytest

from ktrdr_pipelines.domain.bars import micros, timestamps
from ktrdr_pipelines.domain.planning.jobs import Bounds, Mode
from ktrdr_pipelines.domain.planning.reports import SeriesReport
from ktrdr_pipelines.domain.planning.responses import BarRequest
from ktrdr_pipelines.domain.timeframes import Timeframe
from ktrdr_pipelines.gaps.index import GapIndex
from ktrdr_pipelines.store.ledger.ledger import series_key
from ktrdr_pipelines.sync.runner import Job
from tests.support.fake_gateway import utc
from tests.support.loading import NotedTexts, World

MakeWorld = Callable[..., World]
Shape = Callable[[np.ndarray], np.ndarray]
RTH = "XNYS.RTH"
JUNE = date(2024, 5, 1), date(2024, 7, 13)
BEFORE = utc(2024, 6, 14, 23)
AFTER = utc(2024, 6, 17, 23)
KINDS = [Timeframe.M5, Timeframe.H1, Timeframe.D1]


def varied(keys: np.ndarray) -> np.ndarray:
    """Return volumes in shares that differ from bar to bar, and by a factor of two between days."""
    number = keys // 60_000_000
    return 10_000.0 + number * 7919 % 10_000 + 5_000.0 * (number // 1440 % 3)


class Market:
    """A world whose volumes and numbers of trades have a shape, and whose unit can be switched."""

    def __init__(self, made: World, volumes: Shape = varied, trades: Shape | None = None) -> None:
        self.made, self.unit = made, 1.0
        self._volumes = volumes
        self._trades = trades or (lambda keys: np.full(len(keys), 70))
        made.harness.gateway.mutate = self._shaped

    def _shaped(self, _: BarRequest, bars: pa.Table) -> pa.Table:
        keys = timestamps(bars)
        price = 100.0 + keys // 60_000_000 % 13 / 10
        columns = {
            **dict.fromkeys(("open", "high", "low", "close"), pa.array(price)),
            "volume": pa.array(self._volumes(keys) / self.unit),
            "bar_count": pa.array(self._trades(keys), pa.int32()),
        }
        for name, column in columns.items():
            place = bars.schema.get_field_index(name)
            bars = bars.set_column(place, bars.schema.field(name), column)
        return bars

    def run(self, mode: Mode, now: datetime, start: datetime | None = None) -> SeriesReport:
        """Load by a mode at a moment."""
        self.made.harness.gateway.time = now
        bounds = Bounds(start=start or self.made.wanted.start)
        return self.made.harness.run(Job(self.made.series, mode, bounds))[0]

    def jumps(self) -> list[float]:
        """Return the jumps that the ledger knows."""
        known = self.made.harness.ledger.disagreements.jumps_of(series_key(self.made.series))
        return [one.ratio for one in known]


def test_the_note_of_a_jump_has_the_command_for_the_series(world: MakeWorld) -> None:
    """A user can paste it as it stands."""
    market = Market(world(RTH, Timeframe.H1, *JUNE))
    market.run(Mode.FULL, BEFORE)
    market.unit = 100.0
    harness, noted = market.made.harness, NotedTexts()
    harness.gateway.time = AFTER
    (report,) = harness.run_with(noted, market.made.series, market.made.wanted)
    assert len(report.volume_jumps) == 1
    (text,) = noted.texts
    assert f"`ktrdr load {market.made.series} --refresh`" in text


@pytest.mark.parametrize("to_lots", [True, False])
@pytest.mark.parametrize("timeframe", KINDS)
def test_held_bars_returned_in_another_unit_are_one_volume_jump(
    world: MakeWorld, timeframe: Timeframe, *, to_lots: bool
) -> None:
    """The first tail after the switch reports it; nothing is changed, and nothing is incomplete."""
    market = Market(world(RTH, timeframe, *JUNE))
    market.unit = 1.0 if to_lots else 100.0
    market.run(Mode.FULL, BEFORE)
    held = market.made.harness.store.read(market.made.series)
    market.unit = 100.0 if to_lots else 1.0
    report = market.run(Mode.TAIL, AFTER)
    [jump] = report.volume_jumps
    assert jump.ratio == pytest.approx(0.01 if to_lots else 100.0)
    assert report.is_complete
    assert report.disagreements == ()
    stored = market.made.harness.store.read(market.made.series)
    assert stored.slice(0, held.num_rows).equals(held)
    for days in range(1, 15):
        report = market.run(Mode.TAIL, AFTER + timedelta(days=days))
    assert len(report.volume_jumps) == len(market.jumps()) == 1
    harness = market.made.harness
    index = GapIndex(harness.store, harness.ledger.calendars(), harness.gateway.gateway)
    [found] = index.series_gaps([market.made.series], AFTER)
    assert (found.volume_jumps, found.disagreements) == ((jump,), ())


def test_a_switch_and_a_switch_back_are_two_volume_jumps(world: MakeWorld) -> None:
    """Each is reported when it occurs."""
    market = Market(world(RTH, Timeframe.H1, *JUNE))
    market.run(Mode.FULL, BEFORE)
    for days, unit in ((3, 100.0), (4, 100.0), (5, 1.0), (6, 1.0), (7, 100.0)):
        market.unit = unit
        market.run(Mode.TAIL, BEFORE + timedelta(days=days))
    assert market.jumps() == [pytest.approx(one) for one in (0.01, 100.0, 0.01)]


@pytest.mark.parametrize("timeframe", KINDS)
@pytest.mark.parametrize("to_lots", [True, False])
def test_adjoining_bars_in_another_unit_are_a_volume_jump(
    world: MakeWorld, timeframe: Timeframe, *, to_lots: bool
) -> None:
    """Older bars in another unit than the held ones: no bar came twice, the sessions show it."""
    market = Market(world(RTH, timeframe, *JUNE))
    market.unit = 100.0 if to_lots else 1.0
    market.run(Mode.FULL, BEFORE, start=utc(2024, 6, 3))
    market.unit = 1.0 if to_lots else 100.0
    report = market.run(Mode.BACKFILL, BEFORE)
    [jump] = report.volume_jumps
    assert jump.ratio == pytest.approx(0.01 if to_lots else 100.0, rel=0.6)
    assert jump.first.date() == date(2024, 6, 3)
    assert report.is_complete


def test_a_refresh_of_the_whole_series_removes_the_jump(world: MakeWorld) -> None:
    """All bars are then in one unit; the refresh itself still reports the jump."""
    market = Market(world(RTH, Timeframe.D1, *JUNE))
    market.run(Mode.FULL, BEFORE)
    market.unit = 100.0
    market.run(Mode.TAIL, AFTER)
    bounds = Bounds(start=market.made.wanted.start)
    job = Job(market.made.series, Mode.FULL, bounds, refresh=True)
    report = market.made.harness.run(job)[0]
    assert report.volume_jumps
    assert market.jumps() == []
    assert market.run(Mode.TAIL, AFTER + timedelta(days=1)).volume_jumps == ()


def busy_from(day: datetime, times: float, days: int = 90) -> Shape:
    """Return volumes that are so many times the usual from a moment on, for some days."""
    first, end = micros(day), micros(day + timedelta(days=days))

    def shape(keys: np.ndarray) -> np.ndarray:
        return varied(keys) * np.where((keys >= first) & (keys < end), times, 1.0)

    return shape


def no_volume(keys: np.ndarray) -> np.ndarray:
    """Return no volume at all."""
    return np.zeros(len(keys))


def sparse(keys: np.ndarray) -> np.ndarray:
    """Return volumes of a stock of which 100 shares change hands one day and 20,000 the other."""
    return 100.0 * np.random.default_rng(7).geometric(0.004, len(keys))


QUIET = {
    "a busy day": (busy_from(utc(2024, 6, 17), 100.0, 1), None),
    "a quiet day": (busy_from(utc(2024, 6, 17), 0.01, 1), None),
    "two busy days": (busy_from(utc(2024, 6, 17), 100.0, 2), None),
    "a listing": (busy_from(utc(2024, 5, 3), 0.01), None),
    "ten times as much": (busy_from(utc(2024, 6, 17), 10.0), None),
    "no volume": (no_volume, no_volume),
    "a sparse stock": (sparse, None),
    "much more trading": (
        busy_from(utc(2024, 6, 17), 100.0),
        lambda keys: busy_from(utc(2024, 6, 17), 100.0)(keys) // 1000,
    ),
}


@pytest.mark.parametrize(
    ("case", "timeframe"),
    [
        pytest.param(case, timeframe, marks=[] if timeframe is usual else [pytest.mark.slow])
        for case, usual in zip(QUIET, cycle(KINDS), strict=False)
        for timeframe in KINDS
    ],
)
def test_changes_of_trading_are_no_volume_jump(
    world: MakeWorld, case: str, timeframe: Timeframe
) -> None:
    """The first load, which adjoins no bars, and tails of three weeks report none."""
    market = Market(world(RTH, timeframe, *JUNE), *QUIET[case])
    assert market.run(Mode.FULL, BEFORE).volume_jumps == ()
    for days in range(3, 26):
        market.run(Mode.TAIL, BEFORE + timedelta(days=days))
    assert market.jumps() == []


def test_currencies_have_no_lots(world: MakeWorld) -> None:
    """Their volume is not in shares."""
    market = Market(world("FX", Timeframe.H1, *JUNE))
    market.run(Mode.FULL, BEFORE)
    market.unit = 100.0
    market.run(Mode.TAIL, AFTER)
    assert market.jumps() == []


def test_volumes_rounded_to_whole_lots_are_a_volume_jump(world: MakeWorld) -> None:
    """948,837.22 lots come as 948,837 from some gateways."""
    market = Market(world(RTH, Timeframe.M5, *JUNE))
    market.run(Mode.FULL, BEFORE)
    shares = market._volumes
    market._volumes = lambda keys: np.round(shares(keys) / 100)
    market.run(Mode.TAIL, AFTER)
    assert market.jumps() == [pytest.approx(0.01, rel=0.02)]


def test_the_text_of_a_jump_names_both_units(world: MakeWorld) -> None:
    """The text also states that nothing was changed, and what to do."""
    market = Market(world(RTH, Timeframe.D1, *JUNE))
    market.run(Mode.FULL, BEFORE)
    market.unit = 100.0
    [jump] = market.run(Mode.TAIL, AFTER).volume_jumps
    text = jump.text_for(market.made.series)
    assert "in lots of 100, the others in shares" in text
    assert "are kept as returned" in text
    assert f"`ktrdr load {market.made.series} --refresh`" in text
