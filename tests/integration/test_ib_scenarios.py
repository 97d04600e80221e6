"""What a user of the original system expects, from end to end over a simulated gateway."""

import gc
import os
import threading
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import date, timedelta
from pathlib import Path
from time import perf_counter
from typing import Any

import httpx
import numpy as np
import pandas as pd
import pytest

from ktrdr_pipelines import open_store
from ktrdr_pipelines.app.data_manager import DataManager
from ktrdr_pipelines.app.services.gap_filler import GapFillerService
from ktrdr_pipelines.app.workspace import Workspace
from ktrdr_pipelines.clock import system_now
from ktrdr_pipelines.domain.calendars.sessions import midnight
from ktrdr_pipelines.domain.coverage import Coverage
from ktrdr_pipelines.domain.instruments import Origin, Series
from ktrdr_pipelines.domain.intervals import Interval, IntervalSet
from ktrdr_pipelines.domain.timeframes import Timeframe
from ktrdr_pipelines.settings import load_settings
from ktrdr_pipelines.simulator.faults.fault_file import parse_faults
from ktrdr_pipelines.simulator.market.synthetic import SyntheticMarket
from ktrdr_pipelines.simulator.server import SimulatorServer, running_simulator
from ktrdr_pipelines.store.bars.bar_file import read_file, write_file
from ktrdr_pipelines.store.bars.footer import Footer
from ktrdr_pipelines.store.layout import create_store
from tests.support.command_line import ktrdr_in_process
from tests.support.serving import NOW, UNIVERSE, free_port, served_here, wait_for

LOAD, API = "/api/v1/data/load", "/api/v1"
DAY = timedelta(days=1)
FIRST_DAY, LAST_DAY = date(2024, 1, 2), date(2024, 1, 9)


@pytest.fixture(scope="module")
def shared_gateway() -> Iterator[SimulatorServer]:
    """Run one simulated gateway for all tests."""
    with running_simulator(SyntheticMarket(seed=1), now=NOW) as server:
        yield server


@pytest.fixture
def gateway(
    shared_gateway: SimulatorServer, monkeypatch: pytest.MonkeyPatch
) -> Iterator[SimulatorServer]:
    """Make the settings name a gateway without faults, at its time."""
    monkeypatch.setenv("IB_PORT", str(shared_gateway.port))
    shared_gateway.clock.set(NOW)
    yield shared_gateway
    shared_gateway.lift_faults()
    shared_gateway.latency_s = 0.0


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make a store with a small universe, and settings for it."""
    for name in [one for one in os.environ if one.startswith(("KTRDR_", "IB_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("KTRDR_CLOCK_OFFSET_S", repr((NOW - system_now()).total_seconds()))
    monkeypatch.setenv("KTRDR_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("KTRDR_STATE", str(tmp_path / "state"))
    monkeypatch.setenv("IB_MAX_RETRIES", "0")
    layout = create_store(tmp_path / "data", Origin.SIMULATED)
    layout.universe.write_text(UNIVERSE)
    return layout.root


@pytest.fixture
def client(store: Path, gateway: SimulatorServer) -> Iterator[httpx.Client]:
    """Serve the store, and return a client."""
    with served_here() as found:
        yield found


def data(response: httpx.Response) -> Any:
    """Return the document of an answer."""
    assert response.status_code == 200, response.text
    return response.json()["data"]


def load(client: httpx.Client, symbol: str, timeframe: str, mode: str, **more: str) -> Any:
    """Load a series by HTTP, and return the envelope."""
    body = {"symbol": symbol, "timeframe": timeframe, "mode": mode, **more}
    response = client.post(LOAD, json=body)
    assert response.status_code == 200, response.text
    return response.json()


def forget(symbol: str, timeframe: str, *days: date) -> int:
    """Delete session dates of a series from its files, with their coverage; return the bars."""
    workspace, gone = Workspace.open(), 0
    for path in workspace.layout.bar_files(symbol, Timeframe(timeframe)):
        footer, bars = read_file(path)
        is_gone = np.isin(bars["session_date"].to_numpy(), np.array(days, "datetime64[D]"))
        forgotten = IntervalSet(Interval(midnight(day), midnight(day + DAY)) for day in days)
        coverage = Coverage(footer.coverage.bars - forgotten, footer.coverage.empty)
        kept = bars.filter(~is_gone)
        rows = {day: n for day, n in footer.rows_per_session.items() if day not in days}
        write_file(path, kept, Footer(footer.identity, coverage, kept.num_rows, rows))
        gone += int(is_gone.sum())
    return gone


def gaps_of(client: httpx.Client, symbol: str, timeframe: str) -> list[Any]:
    """Return the gaps of a series."""
    return list(data(client.get(f"{API}/data/{symbol}/{timeframe}/gaps"))["gaps"])


def history_requests(gateway: SimulatorServer) -> int:
    """Return how many requests cost budget so far."""
    return len(gateway.requests)


def test_automatic_gap_filling(client: httpx.Client, gateway: SimulatorServer) -> None:
    """Days that went missing are found by a scan, filled by the gap filler, and counted."""
    for symbol, timeframe in (("AAPL", "1d"), ("AAPL", "1h"), ("MSFT", "1d"), ("EURUSD", "1h")):
        assert load(client, symbol, timeframe, "full")["success"]
    for symbol, timeframe in (("AAPL", "1m"), ("MSFT", "1h")):
        load(client, symbol, timeframe, "full")
    before = open_store().read_bars("AAPL", "1d")
    assert forget("AAPL", "1d", date(2024, 1, 4), date(2024, 1, 5)) == 2
    assert [gap["reason"] for gap in gaps_of(client, "AAPL", "1d")] == ["missing"]

    filler = GapFillerService()
    filler.scan(Workspace.open(), system_now())
    found = data(client.get(f"{API}/system/gap-filler-status"))
    assert (found["series_watched"], found["gaps_detected"], found["running"]) == (6, 1, False)
    assert found["bars_missing"] == 2

    forced = data(client.post(f"{API}/system/gap-filler/force-scan"))
    operation = forced["operation"]["id"]
    wait_for(lambda: data(client.get(f"{API}/operations/{operation}"))["ended_at"])
    assert data(client.get(f"{API}/operations/{operation}"))["state"] == "completed"
    assert gaps_of(client, "AAPL", "1d") == []
    pd.testing.assert_frame_equal(open_store().read_bars("AAPL", "1d"), before)
    filler.scan(Workspace.open(), system_now())
    filler.close()
    found = data(client.get(f"{API}/system/gap-filler-status"))
    assert (found["gaps_detected"], found["gaps_filled"], found["gaps_failed"]) == (0, 1, 0)


def test_api_data_loading_in_all_modes(client: httpx.Client, gateway: SimulatorServer) -> None:
    """Tail, backfill and full load what they name, once, and answer when it is saved."""
    tail = load(client, "AAPL", "1d", "full", start_date="2024-01-05", end_date="2024-01-09")
    assert tail["error"] is None
    assert (tail["data"]["fetched_bars"], tail["data"]["cached_before"]) == (2, False)
    backfill = load(client, "AAPL", "1d", "backfill")
    assert backfill["data"]["start_time"] == "2024-01-02T00:00:00Z"
    assert backfill["data"]["cached_before"] is True
    newest = load(client, "AAPL", "1d", "tail")
    assert newest["data"]["end_time"] == "2024-01-09T00:00:00Z"
    sent = history_requests(gateway)
    again = load(client, "AAPL", "1d", "full")
    assert again["data"]["status"] == "success"
    assert (again["data"]["ib_requests_made"], history_requests(gateway)) == (0, sent)
    days = data(client.get(f"{API}/data/AAPL/1d"))["dates"]
    assert [one[:10] for one in days] == [
        *("2024-01-02", "2024-01-03", "2024-01-04", "2024-01-05", "2024-01-08", "2024-01-09")
    ]
    seed = client.post(
        f"{API}/ib/load", json={"symbol": "MSFT", "timeframe": "1d", "mode": "tail"}
    ).json()
    assert (seed["data"]["status"], seed["data"]["fetched_bars"]) == ("success", 6)


def test_data_manager_fallback(
    store: Path, gateway: SimulatorServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Local first; without a gateway the bars held come back, with what is missing and why."""
    manager, sent = DataManager(), history_requests(gateway)
    empty = manager.load("AAPL", "1d")
    assert (len(empty), empty.attrs["complete"], history_requests(gateway)) == (0, False, sent)
    loaded = manager.load("AAPL", "1d", "2024-01-02", "2024-01-06", mode="full")
    assert (len(loaded), loaded.attrs["complete"]) == (4, True)
    sent = history_requests(gateway)

    monkeypatch.setenv("IB_PORT", str(free_port()))
    away = DataManager()
    complete = away.load("AAPL", "1d", "2024-01-02", "2024-01-06", mode="full")
    pd.testing.assert_frame_equal(complete, loaded)
    assert complete.attrs["complete"] is True
    partial = away.load("AAPL", "1d", mode="tail")
    pd.testing.assert_frame_equal(partial, loaded)
    assert partial.attrs["complete"] is False
    assert "nothing listens there" in partial.attrs["error"]
    [(start, end, reason)] = partial.attrs["missing"]
    assert (start[:10], end[:10], reason) == ("2024-01-08", "2024-01-10", "missing")
    nothing = away.load("MSFT", "1d", mode="full")
    assert nothing.empty
    assert list(nothing.columns) == list(loaded.columns)
    assert history_requests(gateway) == sent


def test_range_discovery(client: httpx.Client, gateway: SimulatorServer) -> None:
    """Ranges held and beginnings known are told without a request; what is not held is null."""
    assert load(client, "AAPL", "1d", "full")["success"]
    sent = history_requests(gateway)
    answer = data(client.get(f"{API}/ib/ranges?symbols=AAPL,MSFT&timeframes=1d,1h"))
    ranges = {one["symbol"]: one["ranges"] for one in answer["symbols"]}
    assert ranges["MSFT"] == {"1d": None, "1h": None}
    assert ranges["AAPL"]["1h"] is None
    assert ranges["AAPL"]["1d"]["earliest_date"] == "2024-01-02T00:00:00Z"
    assert ranges["AAPL"]["1d"]["total_days"] == 7
    assert history_requests(gateway) == sent
    contract = client.post(f"{API}/ib/symbols/discover", json={"symbol": "MSFT"})
    assert data(contract)["instrument_type"] == "STK"
    known = data(client.get(f"{API}/ib/symbols/discovered"))
    assert {one["symbol"] for one in known["symbols"]} == {"AAPL", "MSFT"}


def test_five_files_are_five_symbols(
    store: Path, client: httpx.Client, gateway: SimulatorServer
) -> None:
    """Every symbol with a file is listed, also those that the universe no longer names."""
    universe, names = store / "universe.yaml", ["AAPL", "MSFT", "NVDA", "SPY", "EURUSD"]
    universe.write_text(
        "defaults: {timeframes: [1d], start: 2024-01-02}\n"
        f"symbols: {{{', '.join(f'{one}: {{}}' for one in names)}}}\n"
    )
    for name in names:
        assert load(client, name, "1d", "tail")["success"]
    universe.write_text("defaults: {timeframes: [1d], start: 2024-01-02}\nsymbols: {AAPL: {}}\n")
    assert len(list((store / "bars").rglob("*.parquet"))) == 5
    listed = data(client.get(f"{API}/symbols"))
    assert {one["symbol"] for one in listed} == set(names)
    assert open_store().symbols() == sorted(names)


def test_health_checks(
    store: Path, gateway: SimulatorServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Health follows the gateway of the settings, costs no budget, and never waits for it."""
    sent = history_requests(gateway)
    monkeypatch.delenv("IB_PORT")
    with served_here() as client:
        changed = client.put(f"{API}/ib/config", json={"port": gateway.port})
        assert data(changed)["reconnect_required"] is True
        wait_for(lambda: data(client.get(f"{API}/ib/health"))["healthy"])
        status = data(client.get(f"{API}/ib/status"))
        assert status["connection"]["connected"] is True
        assert status["connection"]["port"] == gateway.port
        client.put(f"{API}/ib/config", json={"port": free_port()})
        wait_for(lambda: not data(client.get(f"{API}/ib/health"))["healthy"])
        assert data(client.get(f"{API}/ib/health"))["error_message"]
        client.put(f"{API}/ib/config", json={"port": gateway.port})
        wait_for(lambda: data(client.get(f"{API}/ib/health"))["healthy"])
    assert history_requests(gateway) == sent


def test_progressive_loading(store: Path, gateway: SimulatorServer) -> None:
    """A long range is loaded in parts, newest first, each on disk before the next."""
    loader = Workspace.open().data_loader()
    frame = loader.load_progressive("AAPL", "1h", "2021-06-01", "2024-01-10")
    files = Workspace.open().layout.bar_files("AAPL", Timeframe.H1)
    assert frame.attrs["missing"] == []
    assert len(files) == 1
    assert frame.index.is_monotonic_increasing
    assert str(frame["session_date"].iloc[0]) == "2021-06-01"
    pd.testing.assert_frame_equal(
        loader.load_data_range("AAPL", "1h", "2021-06-01", "2024-01-10"), frame
    )


def test_connection_management(client: httpx.Client, gateway: SimulatorServer) -> None:
    """Loads beside each other have ids of their own from their range, and give them back."""
    wait_for(lambda: data(client.get(f"{API}/ib/status"))["connection"]["connected"])
    earlier = len(gateway.requests)
    wanted = [("AAPL", "1h"), ("AAPL", "1d"), ("MSFT", "1h"), ("MSFT", "1d"), ("EURUSD", "1h")]
    with ThreadPoolExecutor(len(wanted)) as pool:
        found = list(pool.map(lambda one: load(client, *one, "full"), wanted))
    assert all(one["data"]["requests_made"] for one in found)
    low, high = load_settings().client_ids["api"]
    used = {one.client_id for one in gateway.requests[earlier:]}
    assert len(used) > 1
    assert used <= set(range(low, high + 1))
    status = data(client.get(f"{API}/ib/status"))
    assert status["connection_metrics"]["failed_connections"] == 0
    assert status["data_metrics"]["failed_requests"] == 0
    assert data(client.post(f"{API}/ib/cleanup"))["message"]
    wait_for(lambda: open_connections(gateway) <= 1)  # that of the monitor


def open_connections(gateway: SimulatorServer) -> int:
    """Return how many clients are connected."""
    return len(gateway._connections)


@pytest.mark.parametrize(
    "fault",
    [
        "duplicated",
        "unordered",
        "partial, nth: 1",
        pytest.param("conflicting, nth: 1", marks=pytest.mark.slow),
    ],
)
def test_data_quality(store: Path, gateway: SimulatorServer, fault: str) -> None:
    """Whatever order and number bars come in, the store has each once, as the market has it."""
    gateway.faults = parse_faults(f"seed: 1\nfaults: [{{fault: {fault}}}]", "faults")
    bars = DataManager().load("AAPL", "1h", mode="full")
    gateway.lift_faults()
    assert bars.index.is_unique
    assert bars.index.is_monotonic_increasing
    assert bars.attrs["complete"] is True
    series = Series(Workspace.open().universe.instrument("AAPL"), Timeframe.H1)
    checked = Workspace.open().store.read(series)
    assert checked.num_rows == len(bars) == len(open_store().read_bars("AAPL", "1h"))
    rows = bars.groupby("session_date").size()
    assert (rows.iloc[:-1] == 7).all()
    assert (bars["low"] <= bars[["open", "close"]].min(axis=1)).all()
    assert (bars["high"] >= bars[["open", "close"]].max(axis=1)).all()


def test_api_gap_filler_and_command_line_at_once(
    client: httpx.Client,
    gateway: SimulatorServer,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """In one process: no id is taken twice, nothing leaks or warns, and answers stay fast."""
    gateway.latency_s = 0.05
    wait_for(lambda: data(client.get(f"{API}/ib/status"))["connection"]["connected"])
    ktrdr, done, took = ktrdr_in_process(capsys), threading.Event(), []

    def poll() -> None:
        while not done.is_set():
            for path in ("/ib/status", "/ib/health", "/symbols"):
                begun = perf_counter()
                assert client.get(f"{API}{path}").status_code == 200
                took.append(perf_counter() - begun)

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with ThreadPoolExecutor(4) as pool:
            polled, begun = pool.submit(poll), perf_counter()
            loads = [
                pool.submit(load, client, "AAPL", "1h", "full"),
                pool.submit(load, client, "MSFT", "1d", "tail"),
            ]
            forced = data(client.post(f"{API}/system/gap-filler/force-scan"))
            command = ktrdr("load", "EURUSD", "1h", "--json")
            assert all(one.result()["data"]["status"] != "failed" for one in loads)
            wait_for(
                lambda: data(client.get(f"{API}/operations/{forced['operation']['id']}"))[
                    "ended_at"
                ]
            )
            loading_s = perf_counter() - begun
            done.set()
            polled.result()
        gc.collect()
    gateway.latency_s = 0.0
    assert command.code == 0, command.all
    ended = data(client.get(f"{API}/operations/{forced['operation']['id']}"))
    assert ended["state"] == "completed", ended
    unwanted = (RuntimeWarning, ResourceWarning)
    assert [one for one in caught if issubclass(one.category, unwanted)] == []
    for symbol, timeframe in (("AAPL", "1h"), ("MSFT", "1d"), ("EURUSD", "1h")):
        assert gaps_of(client, symbol, timeframe) == []
    # No answer waits for a load, although they share one interpreter.
    assert len(took) > 10
    assert float(np.median(took)) < loading_s / 10
    wait_for(lambda: open_connections(gateway) <= 1)
