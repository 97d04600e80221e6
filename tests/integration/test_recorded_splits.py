"""A store that is kept up to date over real splits serves one price basis on every day.

The recorded bars lie beside the project on some machines only; without them these tests skip.
"""

import asyncio
from collections.abc import Iterator
from datetime import date, datetime, timedelta
from itertools import count
from pathlib import Path

import numpy as np
import pytest

from ktrdr_pipelines.app.workspace import Workspace, universe_file
from ktrdr_pipelines.clock import system_now
from ktrdr_pipelines.domain.bars import basis_of, timestamps
from ktrdr_pipelines.domain.instruments import Series
from ktrdr_pipelines.domain.planning.jobs import Mode
from ktrdr_pipelines.domain.timeframes import Timeframe
from ktrdr_pipelines.settings import Settings
from ktrdr_pipelines.simulator.server import SimulatorServer, open_market, running_simulator
from ktrdr_pipelines.store.bars.bar_store import BarStore
from ktrdr_pipelines.store.layout import create_store
from ktrdr_pipelines.store.ledger.ledger import Ledger
from ktrdr_pipelines.sync.runner import Job
from tests.support.fake_gateway import utc
from tests.support.recordings import RECORDED

pytestmark = [
    pytest.mark.skipif(not RECORDED.is_dir(), reason="no recorded bars on this machine"),
    pytest.mark.slow,
]

TICK = 0.01
DAY = timedelta(days=1)


class Store:
    """A store of AAPL that is loaded from one gateway, as the command line does.

    Each load has a request budget of its own, and real time passes as the gateway's does.
    """

    def __init__(self, folder: Path, gateway: SimulatorServer, universe: str) -> None:
        self.layout = create_store(folder / "data")
        self.layout.universe.write_text(universe, encoding="utf-8")
        self._folder, self._gateway = folder, gateway
        self._began, self._numbers = gateway.clock.now(), count()
        self.store = BarStore(self.layout, Ledger(self.layout.ledger))

    def load(self, mode: Mode) -> None:
        """Load all series."""
        settings = Settings(
            ib_port=self._gateway.port,
            ktrdr_data=self.layout.root,
            ktrdr_state=self._folder / f"state-{next(self._numbers)}",
        )
        passed = self._gateway.clock.now() - self._began
        workspace = Workspace(settings, self.layout, real=lambda: system_now() + passed)
        jobs = [Job(series, mode) for series in self.series]
        reports = asyncio.run(workspace.load_manager().run(jobs))
        assert [report.failures for report in reports] == [()] * len(jobs)

    @property
    def series(self) -> Iterator[Series]:
        """Every series of the universe."""
        universe, _ = universe_file(self.layout).read()
        for instrument in universe.instruments.values():
            for timeframe in instrument.timeframes:
                yield Series(instrument, timeframe)


def differences(kept: Store, fresh: Store) -> dict[str, float]:
    """Return by how much closes differ most, beyond what rounding explains, by series."""
    found = {}
    for series in fresh.series:
        seen, expected = kept.store.read(series), fresh.store.read(series)
        assert timestamps(seen).tolist() == timestamps(expected).tolist()
        raw = kept.store.read_raw(series)
        times = seen["close"].to_numpy() / raw["close"].to_numpy()
        off = np.abs(seen["close"].to_numpy() - expected["close"].to_numpy())
        found[str(series)] = float((off - TICK / 2 * (1 + times)).max())
    return found


@pytest.mark.parametrize(
    ("ex_date", "factor", "start", "universe"),
    [
        pytest.param(
            date(2014, 6, 9),
            1 / 7,
            date(2014, 5, 1),
            "symbols:\n  AAPL: {timeframes: [1d, 1h], start: 2014-05-01}\n",
            id="2014-06-09 7:1",
        ),
        pytest.param(
            date(2014, 6, 9),
            1 / 7,
            date(2014, 6, 5),
            "windows: {1m: 2014-01}\nsymbols:\n  AAPL.ETH: {timeframes: [1m], start: 2014-06-05}\n",
            id="2014-06-09 7:1, minutes alone",
        ),
        pytest.param(
            date(2020, 8, 31),
            1 / 4,
            date(2020, 7, 1),
            "symbols:\n  AAPL: {timeframes: [1d, 1h, 1w], start: 2020-07-01}\n",
            id="2020-08-31 4:1",
        ),
    ],
)
def test_a_real_split_is_found_by_the_first_tail_after_it(
    tmp_path: Path, ex_date: date, factor: float, start: date, universe: str
) -> None:
    """Each evening the store equals one that is loaded then as a whole, and stored bars stay."""
    market = open_market(RECORDED, seed=1, splits=RECORDED / "splits.csv")
    evening = utc(ex_date.year, ex_date.month, ex_date.day, 22)
    with running_simulator(market=market, now=evening - 3 * DAY) as gateway:
        kept = Store(tmp_path / "kept", gateway, universe)
        kept.load(Mode.FULL)
        before = {str(one): kept.store.read_raw(one) for one in kept.series}
        assert all(bars.num_rows for bars in before.values())
        evenings: list[datetime] = [evening, evening + DAY]
        for at in evenings:
            gateway.clock.set(at)
            kept.load(Mode.TAIL)
            fresh = Store(tmp_path / f"fresh-{at:%d}", gateway, universe)
            fresh.load(Mode.FULL)
            assert max(differences(kept, fresh).values()) <= 1e-9
            symbol = next(kept.series).symbol
            [found] = kept.store.bases.of(symbol)
            assert (found.ratio, found.effective) == (factor, ex_date)
            assert not found.is_estimated
            assert fresh.store.bases.of(symbol) == ()
    for series in kept.series:
        raw = kept.store.read_raw(series)
        held = before[str(series)]
        assert raw.slice(0, held.num_rows).equals(held)
        bases = set(basis_of(raw).tolist())
        assert bases == {0, 1} or (series.timeframe is Timeframe.W1 and bases == {0})
