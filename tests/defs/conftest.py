"""A simulated gateway, a store, and a gateway resource that fails where it is told to."""

from collections.abc import AsyncIterator, Callable, Collection, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, closing
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any, ClassVar

import dagster as dg
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from ktrdr_pipelines.app.workspace import Workspace, universe_file
from ktrdr_pipelines.defs.build import build_defs
from ktrdr_pipelines.defs.resources import IbResource
from ktrdr_pipelines.domain.bars import rows_per_session
from ktrdr_pipelines.domain.calendars.registry import calendar_named
from ktrdr_pipelines.domain.calendars.sessions import interval_between
from ktrdr_pipelines.domain.coverage import Coverage
from ktrdr_pipelines.domain.instruments import Series
from ktrdr_pipelines.domain.intervals import IntervalSet
from ktrdr_pipelines.domain.planning.reports import Progress
from ktrdr_pipelines.domain.planning.responses import (
    BarRequest,
    BarSource,
    NoData,
    OnSent,
    Response,
    unheard,
)
from ktrdr_pipelines.domain.timeframes import Timeframe
from ktrdr_pipelines.domain.universe.universe import Windows
from ktrdr_pipelines.errors import GatewayError
from ktrdr_pipelines.ib.config import GatewayConfig
from ktrdr_pipelines.ib.pacing.circuit_breaker import Absence
from ktrdr_pipelines.ib.pacing.rate_limiter import RateLimiter
from ktrdr_pipelines.settings import Settings
from ktrdr_pipelines.simulator.server import SimulatorServer, running_simulator
from ktrdr_pipelines.store.bars.bar_file import read_file, write_file
from ktrdr_pipelines.store.bars.bar_store import BarStore
from ktrdr_pipelines.store.bars.footer import Footer
from ktrdr_pipelines.store.layout import StoreLayout, create_store
from ktrdr_pipelines.store.ledger.ledger import Ledger
from ktrdr_pipelines.sync.runner import LoadManager

NOW = datetime(2026, 6, 12, 12, tzinfo=UTC)
UNIVERSE = """
defaults: {timeframes: [1d, 1h], start: 2023-03-01}
windows: {yearly: 2020}
symbols:
  AAPL: {}
  MSFT: {}
"""


class FailingSource:
    """A source that raises what it is told to for some requests, and else asks the real one."""

    def __init__(self, real: BarSource, fails: Callable[[BarRequest], GatewayError | None]) -> None:
        self._real = real
        self._fails = fails

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    async def bars(self, request: BarRequest, *, sent: OnSent = unheard) -> Response | NoData:
        if error := self._fails(request):
            sent()
            raise error
        return await self._real.bars(request, sent=sent)


class FailingIb(IbResource):
    """The gateway resource over a failing source."""

    fails: ClassVar[Callable[[BarRequest], GatewayError | None]] = staticmethod(lambda _: None)

    def manager(self, workspace: Workspace, *, operation: str, progress: Progress) -> LoadManager:
        manager = super().manager(workspace, operation=operation, progress=progress)
        opened = manager.open_source

        @asynccontextmanager
        async def failing() -> AsyncIterator[Any]:
            async with opened() as source:
                yield FailingSource(source, type(self).fails)

        def open_failing() -> AbstractAsyncContextManager[BarSource]:
            return failing()

        return replace(manager, open_source=open_failing)


@dataclass
class Location:
    """The code location over a simulated gateway and a store of its own."""

    gateway: SimulatorServer
    layout: StoreLayout
    settings: Settings
    instance: dg.DagsterInstance

    @property
    def store(self) -> BarStore:
        return BarStore(self.layout, Ledger(self.layout.ledger))

    def absence(self, port: int | None = None) -> Absence | None:
        """Give what is recorded of the gateway's absence."""
        with closing(self._budget(port)) as budget:
            return budget.absence()

    def note_absence(self, at: datetime, text: str, port: int | None = None) -> None:
        """Record that the gateway is away, as a run does."""
        with closing(self._budget(port)) as budget:
            budget.note_absence(at, text)

    def end_absence(self, at: datetime) -> None:
        """Record that the gateway is back, as its sensor does."""
        with closing(self._budget()) as budget:
            budget.note_recovery(at)

    def _budget(self, port: int | None = None) -> RateLimiter:
        config = GatewayConfig.from_settings(self.settings)
        return RateLimiter.of(config if port is None else replace(config, port=port))

    def defs(self, **overrides: Any) -> dg.Definitions:
        """Build the code location."""
        return build_defs(self.settings, overrides)

    def run(self, timeframe: str, first: str, last: str, **overrides: Any) -> Any:
        """Run a range of partitions of one timeframe as a backfill does."""
        tags = {
            "dagster/asset_partition_range_start": first,
            "dagster/asset_partition_range_end": last,
        }
        return self.run_tagged(timeframe, tags, **overrides)

    def run_requested(self, request: dg.RunRequest, **overrides: Any) -> Any:
        """Run what a sensor asked for."""
        [key] = request.asset_selection or []
        return self.run_tagged(key.path[1], dict(request.tags), **overrides)

    def run_tagged(self, timeframe: str, tags: dict[str, str], **overrides: Any) -> Any:
        """Run one timeframe's asset with tags."""
        defs = self.defs(**overrides)
        return dg.materialize(
            list(defs.assets or []),
            selection=[dg.AssetKey(["bars", timeframe])],
            resources=defs.resources,
            instance=self.instance,
            tags=tags,
            raise_on_error=False,
        )

    def windows(self) -> Windows:
        """Give where windows begin."""
        return universe_file(self.layout).read()[0].windows

    def series(self, symbol: str, timeframe: str) -> Series:
        """Give a series of the universe."""
        universe, _ = universe_file(self.layout).read()
        return Series(universe.instrument(symbol), Timeframe(timeframe))

    def history(self) -> list[Any]:
        """Give the requests for bars that reached the gateway."""
        return [request for request in self.gateway.requests if request.kind == "history"]


def forget_days(location: "Location", symbol: str, timeframe: str, days: Collection[date]) -> int:
    """Take sessions out of the stored files, with what is known of them; give the bars lost."""
    lost = 0
    calendar = calendar_named("XNYS.RTH")
    for path in location.layout.bar_files(symbol, Timeframe(timeframe)):
        status, bars = read_file(path)
        kept = bars.filter(pc.invert(pc.is_in(bars["session_date"], pa.array(sorted(days)))))
        gone = IntervalSet(
            interval_between(calendar, Timeframe(timeframe), day, day + timedelta(days=1))
            for day in days
        )
        coverage = Coverage(status.coverage.bars - gone, status.coverage.empty)
        lost += bars.num_rows - kept.num_rows
        write_file(
            path, kept, Footer(status.identity, coverage, kept.num_rows, rows_per_session(kept))
        )
    return lost


@pytest.fixture
def forget() -> Callable[..., int]:
    """Give the way to take sessions out of stored files."""
    return forget_days


@pytest.fixture(scope="session")
def gateway() -> Iterator[SimulatorServer]:
    """Run one simulated gateway for all tests."""
    with running_simulator(now=NOW) as server:
        yield server


@pytest.fixture
def location(tmp_path: Path, gateway: SimulatorServer) -> Iterator[Location]:
    """Give a code location with two symbols."""
    layout = create_store(tmp_path / "data")
    layout.universe.write_text(UNIVERSE, encoding="utf-8")
    settings = Settings(
        ib_port=gateway.port,
        ib_max_retries=0,
        ktrdr_data=layout.root,
        ktrdr_state=tmp_path / "state",
    )
    with dg.DagsterInstance.ephemeral() as instance:
        for timeframe in ("1d", "1h"):
            instance.add_dynamic_partitions(f"symbols_{timeframe}", ["AAPL", "MSFT"])
        yield Location(gateway, layout, settings, instance)


@pytest.fixture
def failing_ib(location: Location) -> Iterator[Callable[..., IbResource]]:
    """Give the way to make a gateway resource that fails for some requests."""

    def make(fails: Callable[[BarRequest], GatewayError | None]) -> IbResource:
        FailingIb.fails = staticmethod(fails)
        return FailingIb(**IbResource.of(location.settings).model_dump())

    yield make
    FailingIb.fails = staticmethod(lambda _: None)
