"""The gap sensor: it starts runs for what is missing, and none once nothing is missing."""

import asyncio
import signal
import threading
from collections.abc import Callable
from contextlib import closing, suppress
from datetime import UTC, date, datetime, timedelta
from typing import Any

import dagster as dg
import pytest

from ktrdr_pipelines.app.services.gap_filler import GapFillerService
from ktrdr_pipelines.app.setup import UNIVERSE_EXAMPLE, committed
from ktrdr_pipelines.app.workspace import Workspace
from ktrdr_pipelines.clock import system_now
from ktrdr_pipelines.defs.partitions import window_dates
from ktrdr_pipelines.defs.runs.tags import CAUSE, KILLED, RANGE_END, RANGE_START, SYMBOL, TIMEFRAME
from ktrdr_pipelines.defs.sensors.gap_sensor import gap_sensor
from ktrdr_pipelines.domain.bars import micros, moment
from ktrdr_pipelines.domain.calendars.registry import calendar_named
from ktrdr_pipelines.domain.calendars.sessions import interval_between
from ktrdr_pipelines.domain.coverage import Coverage
from ktrdr_pipelines.domain.instruments import Origin, identity_of
from ktrdr_pipelines.domain.intervals import Interval, IntervalSet
from ktrdr_pipelines.domain.planning.responses import BarRequest
from ktrdr_pipelines.domain.timeframes import Timeframe
from ktrdr_pipelines.errors import (
    GatewayError,
    GatewayUnreachableError,
    KtrdrError,
    RequestRejectedError,
)
from ktrdr_pipelines.ib.config import GatewayConfig
from ktrdr_pipelines.ib.pacing.circuit_breaker import MOST_FAILURES, Depth
from ktrdr_pipelines.ib.pacing.rate_limiter import RateLimiter
from ktrdr_pipelines.store.ledger.ledger import Ledger
from tests.support.fake_gateway import bars_at

NOW = datetime(2026, 6, 12, 12, tzinfo=UTC)


class Ticker:
    """Ticks the sensor as the daemon does, with its own clock."""

    def __init__(self, location: Any) -> None:
        self.location, self.now, self.cursor = location, NOW, None

    def __call__(self) -> Any:
        defs = self.location.defs()
        windows = self.location.windows()
        sensor = gap_sensor(tuple(Timeframe), windows, lambda: self.now)
        context = dg.build_sensor_context(
            instance=self.location.instance,
            resources=defs.resources,
            definitions=defs,
            cursor=self.cursor,
        )
        result = sensor(context)
        if isinstance(result, dg.SensorResult):
            self.cursor = result.cursor
        return result

    def requests(self) -> list[dg.RunRequest]:
        result = self()
        return list(result.run_requests) if isinstance(result, dg.SensorResult) else []

    def text(self) -> str:
        result = self()
        if isinstance(result, dg.SkipReason):
            return str(result.skip_message)
        assert not result.run_requests, result.run_requests
        return str(result.skip_reason.skip_message)

    def fill(self, **overrides: Any) -> list[str]:
        """Tick and run until no run is requested; return the names of the runs."""
        names = []
        for _ in range(20):
            requests = self.requests()
            if not requests:
                return names
            for request in requests:
                self.location.run_requested(request, **overrides)
                names.append(name_of(request))
        raise AssertionError(f"the sensor keeps requesting runs: {names}")


def name_of(request: dg.RunRequest) -> str:
    """Return the name of a run: its timeframe and range."""
    tags = request.tags
    return f"{tags[TIMEFRAME]} {tags[RANGE_START]} {tags[RANGE_END]}"


@pytest.fixture
def tick(location: Any) -> Ticker:
    """Return the sensor over the location."""
    return Ticker(location)


def test_empty_store_is_filled_long_timeframes_first(location: Any, tick: Ticker) -> None:
    """Daily before hourly bars, without checks, symbols together; then no run is requested.

    People see symbols and windows among the first tags of a run.
    """
    requests = tick.requests()
    assert [name_of(request) for request in requests] == [
        "1d AAPL|2023 MSFT|2026",
        "1h AAPL|2023 MSFT|2026",
    ]
    assert [list(request.tags.items())[:2] for request in requests] == [
        [("bars/symbols", "AAPL to MSFT"), ("bars/windows", "2023 to 2026")]
    ] * 2
    assert all(request.asset_check_keys == [] for request in requests)
    assert all(request.run_key is None for request in requests)
    for request in requests:
        assert location.run_requested(request).success
    assert tick.text() == "nothing is missing in 4 series"
    before = len(location.history())
    assert tick.requests() == []
    assert len(location.history()) == before


def test_only_missing_inner_days_are_requested(
    location: Any, tick: Ticker, remove: Callable[..., int]
) -> None:
    """The next tick finds removed sessions, and the requests are for them alone."""
    location.write_universe(
        "defaults: {timeframes: [1h], start: 2023-03-01}\n"
        "windows: {yearly: 2020}\nsymbols: {AAPL: {}}"
    )
    tick.fill()
    days = [date(2023, 6, 14), date(2024, 11, 29), date(2026, 2, 10)]
    before = location.store.rows(series := location.series("AAPL", "1h"))
    whole = location.store.read(series)
    assert remove(location, "AAPL", "1h", days) == 7 + 4 + 7
    audited = location.store.ledger.requests.count()
    requests = len(location.history())
    assert tick.fill() == ["1h AAPL|2026 AAPL|2026", "1h AAPL|2023 AAPL|2024"]
    assert location.store.rows(series) == before
    assert location.store.read(series).equals(whole)
    new = location.store.ledger.requests.newest(10_000)[
        : len(location.store.ledger.requests.newest(10_000)) - audited
    ]
    assert {record.series for record in new} == {"AAPL|1h"}
    assert sorted(record.rows for record in new) == [4, 7, 7]
    assert [record.duration for record in new] == ["1 D"] * 3
    assert len(location.history()) - requests == 3
    assert tick.text() == "nothing is missing in 1 series"


def test_a_series_with_an_active_run_gets_no_other_run(location: Any, tick: Ticker) -> None:
    """Whether the sensor or a user launched it."""
    alone = "windows: {yearly: 2020}\nsymbols: {AAPL: {}, MSFT: {start: 2024-03-01}}"
    location.write_universe(f"defaults: {{timeframes: [1d, 1h], start: 2023-03-01}}\n{alone}")
    [first, *others] = tick.requests()
    job = location.defs().resolve_implicit_global_asset_job_def()
    location.instance.create_run_for_job(
        job,
        tags=first.tags,
        asset_selection={dg.AssetKey(["bars", "1d"])},
        status=dg.DagsterRunStatus.STARTING,
    )
    location.instance.create_run_for_job(
        job,
        tags={RANGE_START: "AAPL|2024", RANGE_END: "MSFT|2024"},
        asset_selection={dg.AssetKey(["bars", "1h"])},
        status=dg.DagsterRunStatus.STARTED,
    )
    requests = tick.requests()
    assert [name_of(one) for one in requests] == [name_of(others[0])]
    assert '"said": "4 series lack' in tick.cursor
    assert "3 are being loaded" in tick.cursor


def test_a_failing_symbol_does_not_delay_others(
    location: Any, tick: Ticker, failing_ib: Callable[..., Any]
) -> None:
    """It is deferred until its next attempt; the other symbol is loaded meanwhile."""

    def fails(request: BarRequest) -> GatewayError | None:
        if request.series.symbol == "AAPL":
            return RequestRejectedError(str(request), reason="refused by the test")
        return None

    location.write_universe(
        "defaults: {timeframes: [1d, 1h], start: 2026-04-15}\n"
        "windows: {yearly: 2020}\nsymbols: {AAPL: {}, MSFT: {}}"
    )
    names = tick.fill(ib=failing_ib(fails))
    assert {name for name in names if "MSFT" in name} == {
        "1d AAPL|2026 MSFT|2026",
        "1h AAPL|2026 MSFT|2026",
    }
    for timeframe in ("1d", "1h"):
        assert location.store.rows(location.series("MSFT", timeframe)) > 0
        assert location.store.rows(location.series("AAPL", timeframe)) == 0
    text = tick.text()
    assert "none is due" in text or "wait after runs that changed nothing" in text
    tick.now = NOW + timedelta(days=2)
    assert any(request.tags[SYMBOL] == "AAPL" for request in tick.requests())


def test_runs_that_change_nothing_are_not_repeated_immediately(location: Any, tick: Ticker) -> None:
    """The series wait, although runs without an error record no attempt."""
    job = location.defs().resolve_implicit_global_asset_job_def()
    for request in tick.requests():
        location.instance.create_run_for_job(
            job,
            tags=request.tags,
            asset_selection=set(request.asset_selection),
            status=dg.DagsterRunStatus.FAILURE,
        )
    assert "4 wait after runs that changed nothing" in tick.text()


def test_history_of_manual_symbols_is_left_to_the_user(location: Any, tick: Ticker) -> None:
    """Without bars nothing of it is requested, with bars only what is newer."""
    location.write_universe(
        "defaults: {timeframes: [1d], start: 2023-03-01}\n"
        "windows: {yearly: 2020}\nsymbols: {AAPL: {backfill: manual}, MSFT: {}}"
    )
    assert all("MSFT" in name for name in tick.fill())
    assert "left to you" in tick.text()
    location.run("1d", "AAPL|2025", "AAPL|2025")
    assert tick.fill() == ["1d AAPL|2026 AAPL|2026"]
    days = location.store.rows_per_session(location.series("AAPL", "1d"))
    assert min(days) == date(2025, 1, 2)
    assert max(days) == date(2026, 6, 11)


def test_a_manual_symbol_is_loaded_after_the_bars_of_a_backfill_and_not_before(
    location: Any, tick: Ticker
) -> None:
    """After a backfill of 2016 to 2022, several runs load all that is newer.

    One of them is killed after it has saved half a year: what it left is due again.
    """
    location.write_universe(
        "defaults: {timeframes: [1m], start: 2015-01-02, backfill: manual}\n"
        "windows: {1m: 2015}\nsymbols: {AAPL: {}}"
    )
    location.instance.add_dynamic_partitions("symbols_1m", ["AAPL"])
    save_days(location, date(2016, 1, 1), date(2023, 1, 1))
    requested: list[tuple[str, str]] = []
    for number in range(10):
        requests = tick.requests()
        if not requests:
            break
        [request] = requests
        first, last = (request.tags[one].split("|")[1] for one in (RANGE_START, RANGE_END))
        requested.append((first, last))
        is_killed = number == 1
        save_days(
            location,
            date(int(last), 7, 1) if is_killed else window_dates(first)[0],
            window_dates(last)[1],
        )
    assert requested == [(year, year) for year in ("2026", "2025", "2025", "2024", "2023")]
    assert "left to you" in tick.text()
    covered = location.store.coverage(location.series("AAPL", "1m")).bars.bounds
    assert covered.start == datetime(2016, 1, 4, 14, 30, tzinfo=UTC)


def save_days(location: Any, first: date, end: date) -> None:
    """Save a bar a session of AAPL 1m, as the last save of a run does."""
    series = location.series("AAPL", "1m")
    calendar = calendar_named(series.instrument.calendar)
    days = first, min(end, NOW.date())
    interval = [micros(session.opens_at) for session in calendar.sessions(*days)]
    covered = interval_between(calendar, Timeframe.M1, *days)
    start = max(covered.start, moment(interval[0]))
    location.store.save(
        series,
        identity_of(series, contract_id=265598, origin=Origin.SIMULATED),
        bars_at(interval, calendar),
        Coverage(IntervalSet([Interval(start, covered.end)])),
    )


def test_market_time_decides_what_is_due(location: Any, tick: Ticker) -> None:
    """With market time a year behind, the last year is not missing, and no run reaches into it."""
    location.write_universe(
        "defaults: {timeframes: [1d, 1h], start: 2024-10-01}\n"
        "windows: {yearly: 2020}\nsymbols: {AAPL: {}}"
    )
    year_s = 365 * 86_400.0
    location.settings = location.settings.model_copy(update={"ktrdr_clock_offset_s": -year_s})
    names = [name_of(request) for request in tick.requests()]
    assert names == ["1d AAPL|2024 AAPL|2025", "1h AAPL|2024 AAPL|2025"]
    for request in tick.requests():
        assert location.run_requested(request).success
    assert tick.text() == "nothing is missing in 2 series"
    days = location.store.rows_per_session(location.series("AAPL", "1d"))
    behind = system_now() - timedelta(seconds=year_s)
    assert date(2025, 6, 11) <= max(days) <= behind.date()


def test_no_run_is_requested_for_windows_of_the_future(location: Any, tick: Ticker) -> None:
    """Where market time is ahead, Dagster's windows still end with the one of real time."""
    year_s = 365 * 86_400.0
    location.settings = location.settings.model_copy(update={"ktrdr_clock_offset_s": year_s})
    assert {name_of(request)[-4:] for request in tick.requests()} == {"2026"}


def test_a_run_that_a_signal_ended_does_not_keep_its_series_waiting(
    location: Any, tick: Ticker, failing_ib: Callable[..., Any]
) -> None:
    """Whether Dagster was stopped or killed: the next tick requests the same run at once."""

    def interrupted(request: BarRequest) -> GatewayError | None:
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)  # as the system does
        loop: Any = asyncio.get_running_loop()
        for _ in range(600):  # until the main thread has cancelled the load
            if any(getattr(one._callback, "__name__", "") == "cancel" for one in loop._ready):
                return None
            threading.Event().wait(0.05)
        raise AssertionError("the load was not cancelled within 30 s")

    request = tick.requests()[0]
    ended = location.run_requested(request, ib=failing_ib(interrupted))
    assert not ended.success
    [run] = location.instance.get_runs(dg.RunsFilter(run_ids=[ended.run_id]))
    assert run.tags[CAUSE] == KILLED
    again = [one for one in tick.requests() if one.tags[SYMBOL] == request.tags[SYMBOL]]
    assert request.tags in [one.tags for one in again]


def test_absence_of_the_gateway_counts_by_real_time(location: Any, tick: Ticker) -> None:
    """The offset of market time does not matter."""
    location.settings = location.settings.model_copy(update={"ktrdr_clock_offset_s": -86_400.0})
    location.note_absence(NOW - timedelta(minutes=1), "nothing listens")
    assert "the gateway is away since" in tick.text()


def test_absence_of_another_gateway_stops_no_run(location: Any, tick: Ticker) -> None:
    """It is recorded by host and port."""
    location.note_absence(NOW - timedelta(minutes=1), "nothing listens", port=1)
    assert tick.requests()


def test_open_circuit_breaker_stops_runs(location: Any, tick: Ticker) -> None:
    """They would fail immediately; the tick is skipped with the reason."""
    with closing(RateLimiter.of(GatewayConfig.from_settings(location.settings))) as budget:
        for _ in range(MOST_FAILURES):
            budget.note_trouble(failure="it hung up")
        assert "circuit breaker open after 5 consecutive failures" in tick.text()
        budget.note_response(Depth.DATA)
    assert tick.requests()


def test_no_run_is_started_while_the_gateway_is_unreachable(
    location: Any, tick: Ticker, failing_ib: Callable[..., Any]
) -> None:
    """The first run that cannot connect records the absence; its end starts runs again."""

    def unreachable(request: BarRequest) -> GatewayError | None:
        return GatewayUnreachableError(str(request), reason="nothing listens")

    request = tick.requests()[0]
    assert not location.run_requested(request, ib=failing_ib(unreachable)).success
    known = location.absence()
    assert known is not None
    tick.now = known.seen_at + timedelta(minutes=1)
    assert "the gateway is away since" in tick.text()
    location.end_absence(known.seen_at)
    tick.now = NOW
    Ledger(location.layout.ledger).attempts.hasten(NOW)
    assert request.tags[SYMBOL] in {one.tags[SYMBOL] for one in tick.requests()}


def test_symbol_without_a_partition_is_left_to_the_universe_sensor(
    location: Any, tick: Ticker
) -> None:
    """A run over an unknown partition would fail the tick."""
    location.instance.delete_dynamic_partition("symbols_1d", "MSFT")
    assert "1d MSFT|2023 MSFT|2026" not in {name_of(one) for one in tick.requests()}
    assert "1 have no partition yet" in tick.cursor


def test_an_unedited_example_is_loaded_only_when_it_was_accepted(
    location: Any, tick: Ticker
) -> None:
    """The tick says why it waits; a forced scan is as good as `ktrdr up --yes`."""
    location.write_universe(committed(UNIVERSE_EXAMPLE).decode())
    assert tick.requests() == []
    assert "universe.yaml is still the example" in tick.text()
    workspace = Workspace(location.settings, location.layout)
    with closing(GapFillerService(lambda: workspace)) as service, suppress(KtrdrError):
        service.force_scan()
    assert tick.requests()


def test_big_backlog_is_announced_once_with_its_plan(location: Any, tick: Ticker) -> None:
    """The notice has the requests, their cost, and how to load by hand."""
    location.write_universe(
        "defaults: {timeframes: [1m], start: 2018-01-02}\nwindows: {1m: 2018}\nsymbols: {AAPL: {}}"
    )
    location.instance.add_dynamic_partitions("symbols_1m", ["AAPL"])
    tick()
    assert "a backlog of 1 series is loaded from now on" in tick.cursor
    assert "requests, up to 8" in tick.cursor
    assert "backfill: manual" in tick.cursor
    tick()
    assert "backlog" not in tick.cursor


def test_gaps_before_the_first_window_are_reported_and_get_no_run(
    location: Any, tick: Ticker
) -> None:
    """No partition reaches them, so no run is announced for later either."""
    location.write_universe(
        "defaults: {timeframes: [1d], start: 2023-03-01}\n"
        "windows: {yearly: 2024}\nsymbols: {AAPL: {}, MSFT: {}}"
    )
    names = tick.fill()
    assert names
    assert all("|2023" not in name for name in names)
    text = tick.text()
    assert "2 have gaps only before Dagster's first windows" in text
    assert "later" not in text
