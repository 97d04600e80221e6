"""Fixtures of the Dagster tests: a simulated gateway, a store, and injected failures."""

import asyncio
import shutil
import time
from collections.abc import AsyncIterator, Callable, Collection, Iterator
from contextlib import (
    AbstractAsyncContextManager,
    asynccontextmanager,
    closing,
    contextmanager,
)
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
from ktrdr_pipelines.defs.resources import IbResource, StoreResource
from ktrdr_pipelines.defs.runs.tail_run import TailRun
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
    ignore_sent,
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
from ktrdr_pipelines.store.layout import StoreLayout, create_store, open_store
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
    """A source that fails chosen requests and passes the others to the real source.

    A request fails only when those that were sent before it have their responses: what a run does
    with them must not depend on which is quicker.
    """

    def __init__(self, real: BarSource, fails: Callable[[BarRequest], GatewayError | None]) -> None:
        self._real = real
        self._fails = fails
        self._open = 0
        self._all_answered = asyncio.Event()
        self._all_answered.set()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    async def bars(self, request: BarRequest, *, sent: OnSent = ignore_sent) -> Response | NoData:
        if error := self._fails(request):
            await self._all_answered.wait()
            sent()
            raise error
        self._open += 1
        self._all_answered.clear()
        try:
            return await self._real.bars(request, sent=sent)
        finally:
            self._open -= 1
            if not self._open:
                self._all_answered.set()


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
        """Return the recorded absence of the gateway, or None."""
        with closing(self._budget(port)) as budget:
            return budget.absence()

    def note_absence(self, at: datetime, text: str, port: int | None = None) -> None:
        """Record that the gateway is unreachable, as a run does."""
        with closing(self._budget(port)) as budget:
            budget.note_absence(at, text)

    def end_absence(self, at: datetime) -> None:
        """Record that the gateway is reachable again, as its sensor does."""
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
        """Run what a sensor requested."""
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
        """Return where the windows of the universe begin."""
        return universe_file(self.layout).read()[0].windows

    def series(self, symbol: str, timeframe: str) -> Series:
        """Return a series of the universe."""
        universe, _ = universe_file(self.layout).read()
        return Series(universe.instrument(symbol), Timeframe(timeframe))

    def history(self) -> list[Any]:
        """Return the requests for bars that reached the gateway."""
        return [request for request in self.gateway.requests if request.kind == "history"]

    def write_universe(self, text: str) -> None:
        """Replace the universe file."""
        self.layout.universe.write_text(text, encoding="utf-8")

    def run_tails(self, timeframe: str, **overrides: Any) -> Any:
        """Run the tails of a timeframe by the gateway's clock."""
        return self.run_tails_for(timeframe, 0.0, lambda: NOW, **overrides)

    def run_tails_for(
        self,
        timeframe: str,
        longest_s: float,
        clock: Callable[[], datetime],
        *,
        sleep: Callable[[float], None] = time.sleep,
        **overrides: Any,
    ) -> Any:
        """Run the tails of a timeframe, and of the next minutes, by a clock."""

        @dg.op
        def tails(context: dg.OpExecutionContext, ib: IbResource, store: StoreResource) -> None:
            run = TailRun(
                context, [Timeframe(timeframe)], ib=ib, store=store, clock=clock, sleep=sleep
            )
            run.load(0, longest_s=longest_s)

        @dg.job(resource_defs={**self.defs().resources, **overrides})
        def tails_now() -> None:
            tails()

        return tails_now.execute_in_process(instance=self.instance, raise_on_error=False)

    def materialized(self, timeframe: str, run_id: str | None = None) -> dict[str, tuple[int, str]]:
        """Return rows and state of each materialized window, by its latest event.

        With ``run_id``, only of events of that run, which has one event a window.
        """
        found: dict[str, tuple[int, str]] = {}
        key = dg.AssetKey(["bars", timeframe])
        for record in self.instance.fetch_materializations(key, limit=1000).records:
            if run_id not in {None, record.run_id}:
                continue
            name, event = str(record.partition_key), record.asset_materialization
            assert run_id is None or name not in found, "two events of one window"
            assert event is not None
            rows, state = event.metadata["dagster/partition_row_count"], event.metadata["state"]
            found.setdefault(name, (int(str(rows.value)), str(state.value)))
        return found


def failure_of(result: Any) -> str:
    """Return the description of the failure that ended the only step of a run."""
    [event] = [event for event in result.all_events if event.is_step_failure]
    return str(event.step_failure_data.user_failure_data.description)


def remove_sessions(
    location: "Location", symbol: str, timeframe: str, days: Collection[date]
) -> int:
    """Remove sessions from the stored files, with their coverage; return the number of bars."""
    removed = 0
    calendar = calendar_named("XNYS.RTH")
    for path in location.layout.bar_files(symbol, Timeframe(timeframe)):
        status, bars = read_file(path)
        kept = bars.filter(pc.invert(pc.is_in(bars["session_date"], pa.array(sorted(days)))))
        gone = IntervalSet(
            interval_between(calendar, Timeframe(timeframe), day, day + timedelta(days=1))
            for day in days
        )
        coverage = Coverage(status.coverage.bars - gone, status.coverage.empty)
        removed += bars.num_rows - kept.num_rows
        write_file(
            path, kept, Footer(status.identity, coverage, kept.num_rows, rows_per_session(kept))
        )
    return removed


@pytest.fixture
def remove() -> Callable[..., int]:
    """Return the function that removes sessions from stored files."""
    return remove_sessions


@pytest.fixture
def failure_text() -> Callable[[Any], str]:
    """Return the function that reads the failure of a run."""
    return failure_of


@pytest.fixture(scope="session")
def gateway() -> Iterator[SimulatorServer]:
    """Run one simulated gateway for all tests."""
    with running_simulator(now=NOW) as server:
        yield server


@contextmanager
def opened(layout: StoreLayout, gateway: SimulatorServer, state: Path) -> Iterator[Location]:
    """Open a code location over a store, with a Dagster history of its own."""
    settings = Settings(
        ib_port=gateway.port, ib_max_retries=0, ktrdr_data=layout.root, ktrdr_state=state
    )
    with dg.DagsterInstance.ephemeral() as instance:
        for timeframe in ("1d", "1h"):
            instance.add_dynamic_partitions(f"symbols_{timeframe}", ["AAPL", "MSFT"])
        yield Location(gateway, layout, settings, instance)


@pytest.fixture
def location(tmp_path: Path, gateway: SimulatorServer) -> Iterator[Location]:
    """Return a code location over an empty store with two symbols."""
    layout = create_store(tmp_path / "data")
    layout.universe.write_text(UNIVERSE, encoding="utf-8")
    with opened(layout, gateway, tmp_path / "state") as location:
        yield location


@pytest.fixture
def moved(tmp_path: Path) -> Iterator[Location]:
    """Return a code location over an empty store, and a gateway whose clock a test may set."""
    layout = create_store(tmp_path / "data")
    with (
        running_simulator(now=NOW) as gateway,
        opened(layout, gateway, tmp_path / "state") as location,
    ):
        yield location


@pytest.fixture(scope="session")
def loaded_store(tmp_path_factory: pytest.TempPathFactory, gateway: SimulatorServer) -> Path:
    """Return a store with all daily bars and with two years of hourly bars of AAPL."""
    folder = tmp_path_factory.mktemp("loaded")
    layout = create_store(folder / "data")
    layout.universe.write_text(UNIVERSE, encoding="utf-8")
    with opened(layout, gateway, folder / "state") as location:
        assert location.run("1d", "AAPL|2023", "MSFT|2026").success
        assert location.run("1h", "AAPL|2025", "AAPL|2026").success
    return layout.root


@pytest.fixture
def loaded(tmp_path: Path, gateway: SimulatorServer, loaded_store: Path) -> Iterator[Location]:
    """Return a code location over a copy of the loaded store, of which Dagster knows no window."""
    shutil.copytree(loaded_store, tmp_path / "data")
    with opened(open_store(tmp_path / "data"), gateway, tmp_path / "state") as location:
        yield location


@pytest.fixture
def failing_ib(location: Location) -> Iterator[Callable[..., IbResource]]:
    """Return a function that makes a gateway resource which fails chosen requests."""

    def make(fails: Callable[[BarRequest], GatewayError | None]) -> IbResource:
        FailingIb.fails = staticmethod(fails)
        return FailingIb(**IbResource.of(location.settings).model_dump())

    yield make
    FailingIb.fails = staticmethod(lambda _: None)
