"""Loads from a gateway that accepts IB's conservative table of durations only."""

import asyncio
from collections import Counter
from collections.abc import Iterator
from datetime import date, timedelta
from pathlib import Path

import pytest

from ktrdr_pipelines.app.workspace import Workspace, universe_file
from ktrdr_pipelines.domain.calendars.registry import calendar_named
from ktrdr_pipelines.domain.calendars.sessions import interval_between
from ktrdr_pipelines.domain.instruments import Series
from ktrdr_pipelines.domain.intervals import IntervalSet
from ktrdr_pipelines.domain.planning.reports import SeriesReport
from ktrdr_pipelines.domain.timeframes import Timeframe
from ktrdr_pipelines.ib.config import GatewayConfig
from ktrdr_pipelines.settings import Settings
from ktrdr_pipelines.simulator.market.synthetic import SyntheticMarket
from ktrdr_pipelines.simulator.requests.durations import DurationTable
from ktrdr_pipelines.simulator.requests.request_limits import Kind
from ktrdr_pipelines.simulator.server import SimulatorServer, running_simulator
from ktrdr_pipelines.simulator.simulated_gateway import Behaviour
from ktrdr_pipelines.store.layout import create_store
from ktrdr_pipelines.store.ledger.ledger import Ledger
from ktrdr_pipelines.sync.runner import Job

NOW = "2024-01-10T20:00:30+00:00"
UNIVERSE = f"symbols: {{AAPL: {{timeframes: [{', '.join(Timeframe)}], start: 2000-01-01}}}}"
RANGES = {  # of days and weeks some years and a part of one, which is counted where it may be
    Timeframe.M1: (date(2023, 12, 18), date(2024, 1, 6)),
    Timeframe.M5: (date(2023, 11, 6), date(2024, 1, 6)),
    Timeframe.M15: (date(2023, 11, 6), date(2024, 1, 6)),
    Timeframe.M30: (date(2023, 10, 2), date(2024, 1, 6)),
    Timeframe.H1: (date(2023, 10, 2), date(2024, 1, 6)),
    Timeframe.H4: (date(2023, 10, 2), date(2024, 1, 6)),
    Timeframe.D1: (date(2014, 11, 3), date(2024, 1, 6)),
    Timeframe.W1: (date(2014, 12, 29), date(2024, 1, 6)),
}


class Loading:
    """A store, and a gateway with the conservative table."""

    def __init__(self, folder: Path, gateway: SimulatorServer) -> None:
        self.gateway = gateway
        self.layout = create_store(folder / "data")
        self.layout.universe.write_text(UNIVERSE, encoding="utf-8")
        self.settings = Settings(
            ib_port=gateway.port,
            ib_timeout=30.0,
            ktrdr_data=self.layout.root,
            ktrdr_state=folder / "state",
        )

    def load(self, ranges: dict[Timeframe, tuple[date, date]]) -> list[SeriesReport]:
        """Load session dates, as a new process does."""
        universe, _ = universe_file(self.layout).read()
        instrument = universe.instrument("AAPL")
        calendar = calendar_named(instrument.calendar)
        jobs = [
            Job(
                Series(instrument, timeframe),
                wanted=IntervalSet([interval_between(calendar, timeframe, first, end)]),
            )
            for timeframe, (first, end) in ranges.items()
        ]
        return asyncio.run(Workspace(self.settings, self.layout).load_manager().run(jobs))

    @property
    def gateway_name(self) -> str:
        """The name under which the ledger records facts about the gateway."""
        return GatewayConfig.from_settings(self.settings).gateway

    def request_count(self) -> int:
        """Return the number of requests for bars that the gateway has received."""
        return sum(one.kind is Kind.HISTORY for one in self.gateway.requests)

    def refused(self) -> Counter[str]:
        """Return how many requests were refused for their length, by series."""
        requests = Ledger(self.layout.ledger).requests.newest(10_000)
        return Counter(one.series for one in requests if one.outcome == "RequestTooLongError")


@pytest.fixture
def loading(tmp_path: Path) -> Iterator[Loading]:
    """Run a gateway with the conservative table, and make a store."""
    behaviour = Behaviour(durations=DurationTable.SAFE)
    with running_simulator(SyntheticMarket(seed=1), now=NOW, behaviour=behaviour) as gateway:
        yield Loading(tmp_path, gateway)


@pytest.mark.slow
def test_all_timeframes_load_completely(loading: Loading) -> None:
    """Nothing fails or is requested twice, and no later request is refused but one probe.

    Minutes are not tried wider before many days of them are missing.
    """
    for report in loading.load(RANGES):
        assert report.is_complete, (report.series.timeframe, report.summary, report.failures)
        assert not report.failures
    request_count, refused = loading.request_count(), loading.refused()
    learned = Ledger(loading.layout.ledger).widths.of(loading.gateway_name)
    assert set(learned) == set(Timeframe) - {Timeframe.M1}, "a day of minutes is allowed"
    assert all(report.is_complete for report in loading.load(RANGES))
    assert loading.request_count() == request_count
    earlier = {
        timeframe: (first - timedelta(days=30), first) for timeframe, (first, _) in RANGES.items()
    }
    assert all(report.is_complete for report in loading.load(earlier))
    assert loading.request_count() > request_count
    assert loading.refused() - refused == Counter(["AAPL|1m"])
    still_earlier = {
        one: (first - timedelta(days=30), first) for one, (first, _) in earlier.items()
    }
    known = loading.refused()
    assert all(report.is_complete for report in loading.load(still_earlier))
    assert loading.refused() == known
