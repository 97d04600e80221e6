"""Loads of minutes from gateways of different speeds: requests get the width that is best there."""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, date, datetime
from pathlib import Path

import pytest

from ktrdr_pipelines.app.load_plan import planned
from ktrdr_pipelines.app.views.load_documents import PlanDocument
from ktrdr_pipelines.app.workspace import Workspace, universe_file
from ktrdr_pipelines.domain.calendars.registry import calendar_named
from ktrdr_pipelines.domain.calendars.sessions import interval_between
from ktrdr_pipelines.domain.instruments import Series
from ktrdr_pipelines.domain.intervals import IntervalSet
from ktrdr_pipelines.domain.planning.reports import SeriesReport
from ktrdr_pipelines.domain.timeframes import Timeframe
from ktrdr_pipelines.settings import Settings
from ktrdr_pipelines.simulator.market.synthetic import SyntheticMarket
from ktrdr_pipelines.simulator.requests.pacing_rules import SimulatedPacing, Speed
from ktrdr_pipelines.simulator.server import SimulatorServer, running_simulator
from ktrdr_pipelines.simulator.simulated_gateway import Behaviour
from ktrdr_pipelines.store.layout import create_store
from ktrdr_pipelines.sync.runner import Job

NOW = "2024-07-10T20:00:30+00:00"
SYMBOLS = ("AAPL", "MSFT")
UNIVERSE = "symbols: {AAPL: {timeframes: [1m], start: 2020-01-01}, MSFT: {timeframes: [1m]}}"
MONTHS = date(2024, 1, 2), date(2024, 7, 3)
KIND = "1m STK 6.5h TRADES"
# A twentieth of what a session of minutes takes at a real gateway: overhead, or a price on width.
WIDE_IS_BETTER = Speed(workers=3, request_s=0.1, bar_s=0.00002)
WIDE_IS_WORSE = Speed(workers=3, request_s=0.03, bar_s=0.00005, wide_bars=400, wide_factor=30.0)


class Loading:
    """A store, and a gateway of some speed."""

    def __init__(self, folder: Path, gateway: SimulatorServer) -> None:
        self.gateway = gateway
        self.layout = create_store(folder / "data")
        self.layout.universe.write_text(UNIVERSE, encoding="utf-8")
        self.settings = Settings(
            ib_port=gateway.port, ktrdr_data=self.layout.root, ktrdr_state=folder / "state"
        )

    @property
    def workspace(self) -> Workspace:
        """The store, opened as by a new process."""
        return Workspace(self.settings, self.layout)

    def jobs(self, first: date, end: date) -> list[Job]:
        """Return the loads of session dates of all symbols."""
        universe, _ = universe_file(self.layout).read()
        series = [Series(universe.instrument(one), Timeframe.M1) for one in SYMBOLS]
        return [
            Job(
                one,
                wanted=IntervalSet(
                    [
                        interval_between(
                            calendar_named(one.instrument.calendar), one.timeframe, first, end
                        )
                    ]
                ),
            )
            for one in series
        ]

    def load(self, jobs: list[Job]) -> list[SeriesReport]:
        """Load, as a new process does."""
        return asyncio.run(self.workspace.load_manager().run(jobs))

    def plan(self, jobs: list[Job]) -> PlanDocument:
        """Return what loading would take, as a new process estimates it."""
        return PlanDocument.of(planned(self.workspace, jobs))

    def durations(self) -> list[str]:
        """Return the durations of the requests for bars that the gateway has received."""
        records = self.workspace.ledger.requests.newest(10_000)
        return [one.duration for one in records if one.series.endswith("|1m")]


@pytest.fixture
def loading(tmp_path: Path) -> Callable[[Speed], object]:
    """Return a function that runs a gateway of some speed beside an empty store."""

    @contextmanager
    def run(speed: Speed) -> Iterator[Loading]:
        behaviour = Behaviour(pacing=SimulatedPacing.SOFT, speed=speed)
        with running_simulator(SyntheticMarket(seed=1), now=NOW, behaviour=behaviour) as gateway:
            yield Loading(tmp_path, gateway)

    return run


@pytest.mark.slow
@pytest.mark.parametrize(
    ("speed", "widths", "most_requests"),
    [(WIDE_IS_BETTER, {5, 10, 20, 50}, 130), (WIDE_IS_WORSE, {1}, 290)],
)
def test_requests_get_the_width_that_is_best_at_the_gateway(
    loading: Callable[[Speed], object], speed: Speed, widths: set[int], most_requests: int
) -> None:
    """Everything is loaded; a plan has the learned width, which a new process begins with."""
    with loading(speed) as made:
        assert isinstance(made, Loading)
        jobs = made.jobs(*MONTHS)
        before = made.plan(jobs)
        assert (before.widths, before.requests) == ((), 2 * 126)
        for report in made.load(jobs):
            assert report.is_complete, (report.summary, report.failures)
        assert not made.load(jobs)[0].requests
        count = len(made.durations())
        assert count <= most_requests
        older = made.jobs(date(2023, 10, 2), date(2023, 12, 29))
        plan = made.plan(older)
        (learned,) = plan.widths
        assert learned.kind == KIND
        assert learned.sessions in widths
        assert learned.learned_at <= datetime.now(UTC)
        # A wider one may be quicker still, if the load ended before enough of its responses.
        decided = learned.bars_per_s.keys() - set(learned.undecided)
        assert decided >= {1, learned.sessions}
        assert learned.bars_per_s[learned.sessions] == max(
            learned.bars_per_s[one] for one in decided
        )
        assert plan.requests == 2 * -(-62 // learned.sessions)
        for report in made.load(older):
            assert report.is_complete, (report.summary, report.failures)
        assert len(made.durations()) - count <= plan.requests * 1.3 + 8
