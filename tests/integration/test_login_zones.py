"""Loads of each kind of instrument from gateways whose logins are in other zones.

The zone of a login determines the zone of last trade dates and of the ranges of responses.
"""

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path

import numpy as np
import pytest

from ktrdr_pipelines.app.workspace import Workspace, universe_file
from ktrdr_pipelines.domain.bars import timestamps
from ktrdr_pipelines.domain.calendars.registry import Calendars
from ktrdr_pipelines.domain.calendars.sessions import interval_between
from ktrdr_pipelines.domain.instruments import Series
from ktrdr_pipelines.domain.intervals import IntervalSet
from ktrdr_pipelines.domain.planning.reports import Quiet, SeriesReport
from ktrdr_pipelines.domain.timeframes import Timeframe
from ktrdr_pipelines.settings import Settings
from ktrdr_pipelines.simulator.market.synthetic import SyntheticMarket
from ktrdr_pipelines.simulator.server import SimulatorServer, running_simulator
from ktrdr_pipelines.simulator.simulated_gateway import Behaviour
from ktrdr_pipelines.simulator.variants import HoursZone, MarketVariants, Variants, ZoneNames
from ktrdr_pipelines.store.bars.bar_store import BarStore
from ktrdr_pipelines.store.layout import create_store
from ktrdr_pipelines.store.ledger.ledger import Ledger
from ktrdr_pipelines.sync.runner import Job

NOW = datetime(2024, 6, 5, 12, 0, tzinfo=UTC)
UNIVERSE = """
symbols:
  AAPL: {}
  EURUSD: {}
  ESM24: {sec_type: FUT, symbol: ES, exchange: CME, last_trade_date: "20240621", use_rth: false}
  GCM24: {sec_type: FUT, symbol: GC, exchange: COMEX, last_trade_date: "20240626"}
  SPX: {sec_type: IND, exchange: CBOE}
  BTC: {sec_type: CRYPTO}
  VOD: {primary_exchange: LSE}
"""
GATEWAYS = {
    "Asia/Shanghai": Variants(zone="Asia/Shanghai"),
    "GB": Variants(zone="GB"),
    "US/Eastern": Variants(zone="US/Eastern"),
    "America/New_York": Variants(zone="America/New_York", zone_names=ZoneNames.MODERN),
    "Japan, hours too": Variants(zone="Japan", hours_zone=HoursZone.LOGIN),
}
COINS = {"Asia/Shanghai": "US/Eastern", "America/New_York": "America/New_York"}
"""The zone of the sessions of coins, if they have any; otherwise they trade around the clock."""


class Notes(Quiet):
    """Keeps the notices about the gateway."""

    def __init__(self) -> None:
        self.notices: list[str] = []

    def noticed(self, text: str) -> None:
        self.notices.append(text)


@dataclass
class Loading:
    """A store and a gateway."""

    store: BarStore
    settings: Settings
    notes: Notes

    def series(self, symbol: str, timeframe: str) -> Series:
        """Return a series of the universe."""
        universe, problem = universe_file(self.store.layout).read()
        assert problem is None
        return Series(universe.instrument(symbol), Timeframe(timeframe))

    def load(self, series: Series, first: date, end: date) -> SeriesReport:
        """Load session dates."""
        calendar = Calendars().of(series.instrument)
        wanted = IntervalSet([interval_between(calendar, series.timeframe, first, end)])
        manager = Workspace(self.settings, self.store.layout).load_manager(progress=self.notes)
        return asyncio.run(manager.run([Job(series, wanted=wanted)]))[0]


@pytest.fixture(scope="module", params=GATEWAYS)
def gateway(request: pytest.FixtureRequest) -> Iterator[SimulatorServer]:
    """Run a gateway with its login in a zone."""
    coins = MarketVariants(crypto_zone=COINS.get(request.param, ""))
    behaviour = Behaviour(variants=GATEWAYS[request.param])
    market = SyntheticMarket(1, variants=coins)
    with running_simulator(market=market, now=NOW, behaviour=behaviour) as server:
        yield server


@pytest.fixture
def loading(tmp_path: Path, gateway: SimulatorServer) -> Loading:
    """Make an empty store beside the gateway."""
    layout = create_store(tmp_path / "data")
    layout.universe.write_text(UNIVERSE, encoding="utf-8")
    settings = Settings(
        ib_port=gateway.port, ktrdr_data=layout.root, ktrdr_state=tmp_path / "state"
    )
    return Loading(BarStore(layout, Ledger(layout.ledger)), settings, Notes())


@pytest.mark.parametrize(
    ("symbol", "timeframe"),
    [
        ("AAPL", "1h"),
        ("EURUSD", "1h"),
        ("ESM24", "1h"),
        ("ESM24", "1d"),
        ("GCM24", "1h"),
        ("SPX", "1d"),
        ("BTC", "1h"),
        ("BTC", "1d"),
        ("VOD", "1h"),
    ],
)
def test_each_kind_of_instrument_is_loaded_completely(
    loading: Loading, symbol: str, timeframe: str
) -> None:
    """The contract is found, all sessions have bars, and there is no notice about zones."""
    series = loading.series(symbol, timeframe)
    first, end = date(2024, 5, 6), date(2024, 6, 1)
    report = loading.load(series, first, end)
    assert report.error is None, report.summary
    assert report.failures == ()
    assert report.is_complete, report.summary
    assert loading.notes.notices == []
    calendar = Ledger(loading.store.layout.ledger).calendars().of(series.instrument)
    stored = loading.store.read(series)
    if series.timeframe is Timeframe.D1:
        days = [one.day for one in calendar.sessions(first, end)]
        assert stored["session_date"].to_pylist() == days
    else:
        sessions = calendar.sessions_meeting(
            interval_between(Calendars().of(series.instrument), series.timeframe, first, end)
        )
        keys = timestamps(stored)
        opens, closes = calendar.opens, calendar.closes
        place = np.searchsorted(opens, keys, side="right") - 1
        assert (keys < closes[place]).all()
        assert set(calendar.days[place].tolist()) == {one.day for one in sessions}
    again = loading.load(series, first, end)
    assert (again.requests, again.is_complete) == (0, True)
