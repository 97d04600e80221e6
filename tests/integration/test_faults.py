"""Loads from a faulty gateway: complete, or incomplete with the reason.

``TABLE`` has a fault, when it occurs, and how the load ends. In every case each stored bar equals
the market's, covered ranges hold all bars of the market, and a second load without the fault
completes the store.
"""

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from ktrdr_pipelines.app.workspace import Workspace, universe_file
from ktrdr_pipelines.clock import boot_time_s
from ktrdr_pipelines.domain.calendars.registry import calendar_named
from ktrdr_pipelines.domain.calendars.sessions import interval_between
from ktrdr_pipelines.domain.coverage import Coverage
from ktrdr_pipelines.domain.instruments import Series
from ktrdr_pipelines.domain.intervals import IntervalSet
from ktrdr_pipelines.domain.planning.reports import SeriesReport
from ktrdr_pipelines.domain.planning.responses import BarRequest, Response
from ktrdr_pipelines.domain.timeframes import Timeframe
from ktrdr_pipelines.errors import GatewayError
from ktrdr_pipelines.ib.config import GatewayConfig
from ktrdr_pipelines.ib.pacing.rate_limiter import RateLimiter
from ktrdr_pipelines.ib.pacing.rules import pacing_of
from ktrdr_pipelines.ib.source import open_source
from ktrdr_pipelines.settings import Settings
from ktrdr_pipelines.simulator.faults.fault_file import parse_faults
from ktrdr_pipelines.simulator.market.market import BarQuery, What
from ktrdr_pipelines.simulator.market.synthetic import SyntheticMarket
from ktrdr_pipelines.simulator.requests.durations import SIZE_BY_KEY, Window
from ktrdr_pipelines.simulator.requests.request_limits import Kind
from ktrdr_pipelines.simulator.server import SimulatorServer, running_simulator
from ktrdr_pipelines.simulator.simulated_gateway import Behaviour
from ktrdr_pipelines.store.bars.bar_store import BarStore
from ktrdr_pipelines.store.layout import create_store
from ktrdr_pipelines.store.ledger.ledger import Ledger, series_key
from ktrdr_pipelines.sync.runner import Job, LoadManager

NOW = "2024-01-10T20:00:30+00:00"
"""A Wednesday, 15:00:30 in New York, in the middle of a session."""

UNIVERSE = "symbols: {AAPL: {timeframes: [1m, 5m, 1h, 1d], start: 1980-12-01}}"
MARKET = SyntheticMarket(seed=1)

TIMEOUT_S, OUTAGE_S = 1.5, 2.0
TIMES_FASTER = 300
"""How much faster the budget's clock runs: a pause of a minute takes 0.2 s."""

COMPLETE = ""
"""The message of a complete load."""


@dataclass(frozen=True)
class Case:
    """One line of the table: ``message`` is a part of the report, empty if complete."""

    when: str
    faults: str
    message: str
    load: tuple[str, date, date] = ("1h", date(2023, 10, 2), date(2024, 1, 6))


DAYS_OF_1981 = ("1d", date(1980, 12, 1), date(1982, 6, 1))
TODAY_5M = ("5m", date(2024, 1, 8), date(2024, 1, 11))
ONE_MINUTE = ("1m", date(2024, 1, 3), date(2024, 1, 6))

ENDS_SOCKETS = ("hang_up", "cut", "nightly_reset")

TABLE = (
    # --- silence ----------------------------------------------------------------------------
    Case("no answer, once", "{fault: silence, nth: 1}", COMPLETE),
    Case("no answer to anything", "{fault: silence}", "no answer in 1.5 s"),
    Case("no answer about the contract, once", "{fault: silence, kind: contract, nth: 1}", ""),
    Case("the time is never told", "{fault: silence, kind: time}", "connected, but no answer"),
    Case("an answer after the deadline, once", "{fault: late, seconds: 2, nth: 2}", COMPLETE),
    Case("bars after a cancel, once", "{fault: bars_after_cancel, nth: 1}", COMPLETE),
    Case("bars after a cancel, always", "{fault: bars_after_cancel}", "no answer in 1.5 s"),
    Case("a trickle within the deadline", "{fault: trickle, seconds: 0.05}", COMPLETE),
    Case("a trickle beyond the deadline", "{fault: trickle, seconds: 8}", "no answer in 1.5 s"),
    # --- the socket -------------------------------------------------------------------------
    Case("accepts, then EOF, once", "{fault: hang_up, kind: connect, nth: 1}", COMPLETE),
    Case("accepts, then EOF, always", "{fault: hang_up, kind: connect}", "closed the connection"),
    Case("accepts in silence, once", "{fault: silence, kind: connect, nth: 1}", COMPLETE),
    Case("accepts in silence, always", "{fault: silence, kind: connect}", "did not answer"),
    Case("EOF instead of an answer, once", "{fault: hang_up, nth: 2}", COMPLETE),
    Case("EOF instead of any answer", "{fault: hang_up}", "closed the connection"),
    Case("EOF inside an answer, once", "{fault: cut, nth: 1}", COMPLETE),
    Case("EOF inside every answer", "{fault: cut}", "closed the connection"),
    # --- the gateway's own connections ---------------------------------------------------------
    Case("1100, then 1101", "{fault: link_lost, code: 1101, seconds: 0.3, nth: 2}", COMPLETE),
    Case("1100, then 1102", "{fault: link_lost, code: 1102, seconds: 0.3, nth: 1}", COMPLETE),
    Case("1100 for long", "{fault: link_lost, seconds: 60, nth: 2}", "1100"),
    Case("2105, then 2106", "{fault: farm_broken, seconds: 0.3, nth: 2}", COMPLETE),
    Case("2105 for long", "{fault: farm_broken, seconds: 60, nth: 1}", "2105"),
    Case("the nightly reset, short", "{fault: nightly_reset, seconds: 0.4, nth: 2}", COMPLETE),
    Case(
        "the nightly reset, long",
        "{fault: nightly_reset, seconds: 60, nth: 2}",
        "circuit breaker open",
    ),
    Case(
        "1100 again and again, then 1102 with farms",
        "{fault: link_lost, seconds: 0.4, repeats: 6, farms: usfarm; ushmds, nth: 2}",
        COMPLETE,
    ),
    Case(
        "1102 that does not list the farm of bars",
        "{fault: farm_unnamed, seconds: 0.3, nth: 2}",
        COMPLETE,
    ),
    Case("a farm that flaps", "{fault: farm_flaps, seconds: 0.05, repeats: 5, nth: 1}", COMPLETE),
    Case(
        "a whole night",
        "{fault: nightly_farms, seconds: 0.4, repeats: 5, flap: 0.05, nth: 1}",
        COMPLETE,
    ),
    Case("every id held for long", "{fault: ids_held, seconds: 60}", "client id"),
    # --- errors -----------------------------------------------------------------------------
    Case("321, once", "{fault: invalid, nth: 1}", "Error validating request"),
    Case(
        "200 for a good contract, once", "{fault: unknown_contract, kind: contract, nth: 1}", "200"
    ),
    Case("200 for bars, once", "{fault: unknown_contract, nth: 2}", "200"),
    Case(
        "162 without a known text, once", "{fault: error, code: 162, text: Odd, nth: 1}", COMPLETE
    ),
    Case("354 not subscribed", "{fault: error, code: 354, text: Not subscribed., nth: 1}", "354"),
    Case("a burst of pacing violations", "{fault: pacing, nth: [1, 2, 3]}", COMPLETE),
    Case("violations one by one", "{fault: pacing, every: 2}", COMPLETE),
    Case("pacing violations only", "{fault: pacing}", "pacing violation"),
    # --- "no data" ----------------------------------------------------------------------------
    Case("'no data' where there is data, once", "{fault: no_data, nth: 1}", COMPLETE),
    Case("'no data' for everything", "{fault: no_data}", "gaps unexplained"),
    Case("nothing past the oldest bar", "{fault: past_oldest}", "confirmed at", DAYS_OF_1981),
    # --- odd answers --------------------------------------------------------------------------
    Case("only the newest half, once", "{fault: partial, nth: 1}", COMPLETE),
    Case("only the newest half, always", "{fault: partial}", COMPLETE),
    Case("2188, newest minutes missing", "{fault: newest_missing, bars: 4}", COMPLETE, TODAY_5M),
    Case("2188 after the close", "{fault: newest_missing, nth: 1}", "1 gaps unexplained"),
    Case("2188 after the close, always", "{fault: newest_missing}", "gaps unexplained"),
    Case("bars twice", "{fault: duplicated}", COMPLETE, ONE_MINUTE),
    Case("two bars of one moment, once", "{fault: conflicting, nth: 1}", COMPLETE),
    Case("two bars of one moment, always", "{fault: conflicting}", COMPLETE),
    Case("bars in no order", "{fault: unordered}", COMPLETE, ONE_MINUTE),
    # --- the clock ----------------------------------------------------------------------------
    Case("the clock 10 min behind", "{fault: clock_off, minutes: -10}", COMPLETE, TODAY_5M),
)


class Loading:
    """A store and the gateway of one test."""

    def __init__(self, folder: Path, gateway: SimulatorServer) -> None:
        self.gateway = gateway
        self.layout = create_store(folder / "data")
        self.layout.universe.write_text(UNIVERSE, encoding="utf-8")
        self.settings = Settings(
            ib_port=gateway.port,
            ib_timeout=TIMEOUT_S,
            ib_max_retries=2,
            ib_retry_delay=0.05,
            ktrdr_data=self.layout.root,
            ktrdr_state=folder / "state",
        )

    @property
    def store(self) -> BarStore:
        return BarStore(self.layout, Ledger(self.layout.ledger))

    def series(self, timeframe: str) -> Series:
        universe, _ = universe_file(self.layout).read()
        return Series(universe.instrument("AAPL"), Timeframe(timeframe))

    def manager(self) -> LoadManager:
        """Return a manager as commands have it, with pauses and budget on the faster clock."""
        config = replace(GatewayConfig.from_settings(self.settings), outage_s=OUTAGE_S)
        manager = Workspace(self.settings, self.layout).load_manager()
        return replace(
            manager,
            open_source=lambda: open_source(config, rate_limiter=fast(config)),
            retry_policy=replace(manager.retry_policy, sleep=sleep_fast),
        )

    def load(self, timeframe: str, first: date, end: date) -> SeriesReport:
        """Load session dates; an error that ends the whole run becomes that of the series."""
        series = self.series(timeframe)
        interval = interval_between(calendar_named("XNYS.RTH"), series.timeframe, first, end)
        job = Job(series, wanted=IntervalSet([interval]))
        try:
            return asyncio.run(self.manager().run([job]))[0]
        except GatewayError as error:
            return SeriesReport(series, error=error)

    def response_to(self, request: BarRequest) -> Response:
        """Request bars, whatever the store holds."""
        config = GatewayConfig.from_settings(self.settings)

        async def send() -> Response:
            async with open_source(config, rate_limiter=fast(config)) as source:
                found = await source.bars(request)
            assert isinstance(found, Response)
            return found

        return asyncio.run(send())

    def forget_refusals(self) -> None:
        """Forget refusals, as `ktrdr doctor` does."""
        state = self.settings.ktrdr_state.with_name("other state")
        self.settings = self.settings.model_copy(update={"ktrdr_state": state})

    def check_audited(self, *, whole: bool) -> None:
        """Check that the audit has every request for historical data that the gateway counted.

        A request that is lost with its socket is in the audit alone; the counts differ then.
        """
        kinds = [
            record.kind for record in self.gateway.requests if record.kind is not Kind.CONTRACT
        ]
        audited = self.store.ledger.requests.newest(10_000)
        heads = sum(not record.duration for record in audited)
        if whole:
            assert heads == kinds.count(Kind.HEAD)
            assert len(audited) - heads == kinds.count(Kind.HISTORY)
        assert len(audited) >= len(kinds)

    def check_true(self, series: Series) -> None:
        """Check that no stored bar is false, and that covered ranges lack no bar."""
        true = truth(series, self.gateway)
        stored = {row["ts"]: row for row in self.store.read(series).to_pylist()}
        for moment, row in stored.items():
            assert row == true[moment], moment
        for part in self.store.coverage(series).covered(datetime.now(UTC)):
            inside = {moment for moment in true if part.start <= moment < part.end}
            assert inside <= stored.keys(), part


def fast(config: GatewayConfig) -> RateLimiter:
    """Return a rate limiter whose clock runs faster than real time."""
    return RateLimiter(
        config.folder,
        pacing=pacing_of(),
        clock=lambda: boot_time_s() * TIMES_FASTER,
        sleep=sleep_fast,
    )


async def sleep_fast(seconds: float) -> None:
    """Sleep by the faster clock."""
    await asyncio.sleep(seconds / TIMES_FASTER)


def truth(series: Series, gateway: SimulatorServer) -> dict[datetime, dict[str, object]]:
    """Return every bar of the market that the series can hold, by timestamp."""
    [aapl] = [found for found in MARKET.instruments() if found.symbol == "AAPL"]
    start = int(datetime(1980, 12, 1, tzinfo=UTC).timestamp())
    if series.timeframe.is_intraday:
        start = int(datetime(2023, 9, 1, tzinfo=UTC).timestamp())
    window = Window(start, int(gateway.clock.now().timestamp()))
    size = SIZE_BY_KEY[series.timeframe.value]
    bars = MARKET.bars(aapl, BarQuery(What.TRADES, size, True, window))
    assert bars.volume is not None
    assert bars.average is not None
    assert bars.count is not None
    columns = zip(
        *(column.tolist() for column in (bars.start, bars.open, bars.high, bars.low, bars.close)),
        *(column.tolist() for column in (bars.volume, bars.average, bars.count)),
        strict=True,
    )
    names = ("open", "high", "low", "close", "volume", "average", "bar_count")
    found: dict[datetime, dict[str, object]] = {}
    for epoch_s, *values in columns:
        moment = datetime.fromtimestamp(epoch_s, UTC)
        local = moment if series.timeframe is Timeframe.D1 else moment - timedelta(hours=5)
        found[moment] = {
            "ts": moment,
            "session_date": local.date(),
            **dict(zip(names, values, strict=True)),
        }
    return found


def report_text(report: SeriesReport) -> str:
    """Return the summary and the failures of a report."""
    failures = [report.error, *report.failures]
    return "; ".join([report.summary, *(str(failure) for failure in failures if failure)])


@cache
def _warm() -> None:
    """Make the market build its calendars before any deadline counts."""
    [aapl] = [found for found in MARKET.instruments() if found.symbol == "AAPL"]
    start = int(datetime(2024, 1, 9, tzinfo=UTC).timestamp())
    for key in ("1m", "1h", "1d"):
        MARKET.bars(
            aapl, BarQuery(What.TRADES, SIZE_BY_KEY[key], True, Window(start, start + 86_400))
        )


@contextmanager
def loading_under(
    folder: Path, faults: str, *, now: str | None = NOW, seed: int = 1
) -> Iterator[Loading]:
    """Run a gateway with faults, and a store for it."""
    _warm()
    plan = parse_faults(f"seed: {seed}\nfaults: [{faults}]", "faults")
    behaviour = Behaviour(faults=plan)
    with running_simulator(MARKET, now=now, behaviour=behaviour) as gateway:
        yield Loading(folder, gateway)


def params(cases: Sequence[Case]) -> list[Any]:
    """Return the cases; those that outlast many retries are marked as slow."""
    slow = {
        "2105 for long",
        "the nightly reset, long",
        "1100 for long",
        "bars after a cancel, always",
        "a trickle beyond the deadline",
        "pacing violations only",
        "no answer to anything",
        "the time is never told",
        "accepts in silence, always",
        "every id held for long",
    }
    return [
        pytest.param(case, id=case.when, marks=[pytest.mark.slow] if case.when in slow else [])
        for case in cases
    ]


@pytest.mark.parametrize("case", params(TABLE))
def test_a_load_under_a_fault(tmp_path: Path, case: Case) -> None:
    """It ends as the table says, stores nothing false, and a second load completes it."""
    with loading_under(tmp_path, case.faults) as made:
        report = made.load(*case.load)
        series = report.series
        assert case.message in report_text(report)
        assert report.is_complete is (case.message == COMPLETE), report.summary
        made.check_true(series)
        made.check_audited(whole=not any(one in case.faults for one in ENDS_SOCKETS))
        assert "clock_off" in case.faults or sum(made.gateway.faults.happened) > 0
        made.gateway.lift_faults()
        if "354" in case.when:
            made.forget_refusals()
        report = made.load(*case.load)
        assert report.is_complete, report.summary
        made.check_true(series)


def test_restated_bars_replace_the_stored_ones(tmp_path: Path) -> None:
    """The latest response is stored, and the earlier bars are kept as revisions."""
    with loading_under(tmp_path, "{fault: restated, factor: 0.25}") as made:
        report = made.load("1h", date(2024, 1, 2), date(2024, 1, 6))
        assert report.is_complete
        series = report.series
        true = truth(series, made.gateway)
        before = made.store.read(series)
        for row in before.to_pylist():
            assert row["close"] == true[row["ts"]]["close"] * 0.25  # type: ignore[operator]
        made.gateway.lift_faults()
        response = made.response_to(BarRequest(series, datetime(2024, 1, 5, 21, tzinfo=UTC), "4 D"))
        identity = made.store.identity(series)
        assert identity is not None
        made.store.save(series, identity, response.bars, Coverage())
        made.check_true(series)
        kept = made.store.ledger.revisions.of(series_key(series))
        assert len(kept) == before.num_rows


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_many_faults_at_once(tmp_path: Path, seed: int) -> None:
    """Stored bars are true, and a load without faults completes the store.

    One response only omits bars: two that omit the same interval would confirm it as empty.
    """
    kinds = ("silence", "hang_up", "cut", "unordered", "duplicated")
    kinds += ("conflicting", "invalid", "bars_after_cancel", "late", "trickle")
    entries = [f"{{fault: {kind}, probability: 0.08}}" for kind in kinds]
    faults = ", ".join(["{fault: no_data, nth: 4}", *entries])
    days = ("5m", date(2023, 11, 1), date(2024, 1, 11))
    with loading_under(tmp_path, faults, seed=seed) as made:
        report = made.load(*days)
        made.check_true(report.series)
        assert sum(made.gateway.faults.happened) > 0
        made.gateway.lift_faults()
        report = made.load(*days)
        assert report.is_complete, report.summary
        made.check_true(report.series)


@pytest.mark.parametrize("minutes", [-10, 10])
def test_a_wrong_clock_of_the_gateway(tmp_path: Path, minutes: int) -> None:
    """Whether it is behind or ahead, no bar is stored before its end."""
    with loading_under(tmp_path, f"{{fault: clock_off, minutes: {minutes}}}", now=None) as made:
        now = made.gateway.clock.now()
        report = made.load("1m", now.date() - timedelta(days=6), now.date() + timedelta(days=1))
        assert report.now is not None
        assert report.now <= datetime.now(UTC) + timedelta(seconds=1)
        assert report.is_complete, report.summary
        made.check_true(report.series)
