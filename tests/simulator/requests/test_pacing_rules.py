"""The pacing rules: which requests break them, and the gateway's reaction."""

import json
import socket
import statistics
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from ktrdr_pipelines.errors import SimulatorError
from ktrdr_pipelines.simulator.market.synthetic import SyntheticMarket
from ktrdr_pipelines.simulator.requests.pacing_rules import (
    PacingRule,
    SimulatedPacing,
    Speed,
    Workers,
    WorkersFrom,
    is_small_bar,
)
from ktrdr_pipelines.simulator.server import ServerThread, SimulatorServer, running_simulator
from ktrdr_pipelines.simulator.simulated_gateway import Behaviour, SimClock
from tests.simulator.rawclient import END, RawClient, raw_client

START = datetime(2024, 1, 10, 20, 0, 30, tzinfo=UTC)


@contextmanager
def fixed_clock_gateway(
    market: SyntheticMarket, mode: SimulatedPacing, **other: Any
) -> Iterator[tuple[SimulatorServer, SimClock]]:
    """Run a gateway whose clock is fixed until it is set."""
    clock = SimClock(START, runs=False)
    server = SimulatorServer(market, clock=clock, behaviour=Behaviour(pacing=mode, **other))
    thread = ServerThread(server.start, server.close)
    thread.start_and_wait()
    try:
        yield server, clock
    finally:
        thread.stop()


def after(clock: SimClock, seconds: float) -> None:
    """Advance a fixed clock."""
    clock.set(clock.now() + timedelta(seconds=seconds))


def codes(client: RawClient) -> list[int]:
    """Return the codes of the received errors about requests."""
    return [int(frame[3]) for frame in client.seen if frame[0] == "4" and frame[2] != "-1"]


def request_bars(client: RawClient, number: int, **options: str) -> int:
    """Request bars; return their number, or the code of an error as a negative number."""
    client.bars(number, **options)
    return outcome(client, number)


def outcome(client: RawClient, number: int) -> int:
    """Wait for the outcome of a request."""
    while True:
        frame = client.frame()
        assert frame is not None
        client.seen.append(frame)
        if frame[0] == "17" and frame[1] == str(number):
            return int(frame[4])
        if frame[0] == "88" and frame[1] == str(number):
            return 1
        if frame[0] == "4" and frame[2] == str(number):
            return -int(frame[3])


def end_of(minute: int) -> str:
    """Return an end that no other request has."""
    return f"20240109-20:{minute:02d}:00"


def test_an_identical_request_within_15_s_is_a_violation(synthetic: SyntheticMarket) -> None:
    """Any client gets 162 with IB's text, until 15 s have passed."""
    with fixed_clock_gateway(synthetic, SimulatedPacing.HARD) as (server, clock):
        with raw_client(server, 1) as one, raw_client(server, 2) as other:
            assert request_bars(one, 1) == 7
            assert request_bars(other, 1) == -162
            assert "Historical data request pacing violation" in other.seen[-1][4]
            assert request_bars(other, 2, duration="2 D") == 14
            after(clock, 14.999)
            assert request_bars(one, 2) == -162
            after(clock, 0.001)
            assert request_bars(one, 3) == 7
        assert server.violations == {PacingRule.IDENTICAL: 2}


def test_both_clients_ways_of_writing_no_strike_are_identical(synthetic: SyntheticMarket) -> None:
    """ib_async sends 0.0, ibapi an empty strike: the request is the same."""
    fields = ("0", "AAPL", "STK", "", "", "", "", "SMART", "", "USD", "", "")
    with (
        fixed_clock_gateway(synthetic, SimulatedPacing.HARD) as (server, _),
        raw_client(server) as client,
    ):
        assert request_bars(client, 1) == 7
        client.send(20, 2, *fields, 0, END, "1 hour", "1 D", "1", "TRADES", "2", "0", "")
        assert outcome(client, 2) == -162


def test_the_sixth_request_of_a_contract_within_2_s_is_a_violation(
    synthetic: SyntheticMarket,
) -> None:
    """Five of one contract, exchange and tick type are accepted over all clients."""
    with (
        fixed_clock_gateway(synthetic, SimulatedPacing.HARD) as (server, clock),
        raw_client(server, 1) as one,
        raw_client(server, 2) as other,
    ):
        for at in range(5):
            assert request_bars((one, other)[at % 2], at, end=end_of(at)) > 0
        for client in (one, other):
            assert request_bars(client, 5, end=end_of(5)) == -162
        assert request_bars(other, 6, end=end_of(6), what="MIDPOINT") > 0
        after(clock, 1.999)
        assert request_bars(one, 7, end=end_of(5)) == -162
        after(clock, 0.001)
        assert request_bars(one, 8, end=end_of(5)) > 0
        assert server.violations == {PacingRule.SAME_CONTRACT: 3}


@pytest.mark.parametrize(("what", "fit"), [("TRADES", 60), ("BID_ASK", 30)])
def test_the_window_of_ten_minutes(synthetic: SyntheticMarket, what: str, fit: int) -> None:
    """Sixty requests fit into 10 min over all clients, half as many of BID_ASK."""
    with (
        fixed_clock_gateway(synthetic, SimulatedPacing.HARD) as (server, clock),
        raw_client(server, 1) as one,
        raw_client(server, 2) as other,
    ):
        for at in range(fit):
            assert request_bars((one, other)[at % 2], at, end=end_of(at), what=what) > 0
            after(clock, 3)
        for client in (one, other):
            assert request_bars(client, 100, what=what) == -162
        after(clock, 600 - 3 * fit - 0.001)
        assert request_bars(one, 101, what=what) == -162
        assert server.violations == {PacingRule.WINDOW: 3}
        after(clock, 0.001)
        assert request_bars(one, 102, what=what) > 0
        assert request_bars(one, 103, what=what, duration="2 D") == -162


def test_documented_pacing_binds_small_bars_and_heads_only(synthetic: SyntheticMarket) -> None:
    """Hours are not limited; bars of 30 s and head timestamps are."""
    with (
        fixed_clock_gateway(synthetic, SimulatedPacing.DOCUMENTED) as (server, _),
        raw_client(server) as client,
    ):
        assert [request_bars(client, at) for at in range(8)] == [7] * 8
        assert request_bars(client, 10, size="30 secs", duration="1800 S") == 60
        assert request_bars(client, 11, size="30 secs", duration="1800 S") == -162
        for number, expected in ((12, 1), (13, -162)):
            client.head(number)
            assert outcome(client, number) == expected


@pytest.mark.parametrize(
    ("size", "small"), [("1 secs", True), ("30 secs", True), ("1 min", False), ("x secs", False)]
)
def test_small_bars_are_those_of_30_s_or_less(size: str, small: bool) -> None:
    """IB's hard rules apply to these."""
    assert is_small_bar(size) is small


def test_without_pacing_nothing_is_counted(synthetic: SyntheticMarket) -> None:
    """Identical requests and bursts of messages get their responses."""
    with (
        fixed_clock_gateway(synthetic, SimulatedPacing.OFF) as (server, _),
        raw_client(server) as client,
    ):
        for _ in range(200):
            client.send(49, 1)
        assert request_bars(client, 1, size="30 secs", duration="1800 S") == 60
        assert request_bars(client, 2, size="30 secs", duration="1800 S") == 60
        assert server.violations == {}


def test_too_many_messages_are_error_100_and_three_strikes(synthetic: SyntheticMarket) -> None:
    """The 51st message within a second is refused; the third such burst ends the session."""
    with fixed_clock_gateway(synthetic, SimulatedPacing.DOCUMENTED) as (server, clock):
        with raw_client(server) as client:
            client.until(2158)
            for strike in range(1, 3):
                after(clock, 1.0)
                for _ in range(51):
                    client.send(49, 1)
                assert client.until(100)[2] == "-1"
                assert server.violations == {PacingRule.MESSAGES: strike}
            after(clock, 1.0)
            for _ in range(51):
                client.send(49, 1)
            client.until(100)
            assert client.is_ended()
        with raw_client(server, 2) as other:
            assert request_bars(other, 1) == 7


def test_the_id_of_a_killed_client_stays_taken(synthetic: SyntheticMarket) -> None:
    """A client that dies with an open request holds its id; a proper disconnect frees it."""
    held = {"hold_s": 30.0}
    with fixed_clock_gateway(synthetic, SimulatedPacing.DOCUMENTED, **held) as (server, clock):
        with raw_client(server, 7) as proper:
            proper.until(2158)
        with raw_client(server, 7) as killed:
            killed.until(2158)
            linger = struct.pack("ii", 1, 0)
            killed.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        with raw_client(server, 8) as watcher:
            watcher.until(2158)
        with raw_client(server, 7) as second:
            assert second.until(326)
            assert second.is_ended()
        after(clock, 30.1)
        with raw_client(server, 7) as third:
            assert third.until(2158)


def test_the_33rd_client_is_refused(synthetic: SyntheticMarket) -> None:
    """Thirty-two clients may be connected."""
    with fixed_clock_gateway(synthetic, SimulatedPacing.DOCUMENTED) as (server, _):
        clients = [raw_client(server, number) for number in range(33)]
        opened = [client.__enter__() for client in clients]
        for client in opened[:32]:
            client.until(2158)
        assert opened[32].until(502)
        for client in clients:
            client.__exit__(None, None, None)


def test_soft_pacing_takes_longer_under_load_and_ends_in_a_disconnect() -> None:
    """Workers take time by bars, later requests wait longer, and a full queue disconnects."""
    workers = Workers(Speed(workers=2, request_s=1.0, bar_s=0.01, most_waiting=2), lambda: 100.0)
    assert [workers.reserve(100) for _ in range(5)] == [2.0, 2.0, 4.0, 4.0, None]
    assert workers.waiting == 2


def test_an_end_costs_a_worker_time() -> None:
    """A request without an end is faster by the factor."""
    for factor, speed in ((30.0, Speed(workers=1)), (4.0, Speed(workers=1, end_factor=4.0))):
        with_end, without = (
            Workers(speed, lambda: 100.0).reserve(100, has_end=has) for has in (1, 0)
        )
        assert with_end == pytest.approx(0.3 + 100 * 0.0003)
        assert without == pytest.approx((with_end or 0.0) / factor)


def test_waiting_requests_slow_a_gateway() -> None:
    """Each waiting request slows the one that arrives by the load's share."""
    workers = Workers(Speed(workers=1, request_s=1.0, bar_s=0.0, load=0.5), lambda: 100.0)
    assert [workers.reserve(0) for _ in range(4)] == [1.0, 2.0, 3.5, 5.5]


def test_noise_keeps_the_mean_and_repeats() -> None:
    """Times spread by the noise's share around the same mean; a seed repeats them."""

    def times(seed: int) -> list[float]:
        speed = Speed(workers=10_000, request_s=2.0, bar_s=0.0, noise=0.3, seed=seed)
        workers = Workers(speed, lambda: 100.0)
        return [workers.reserve(0) or 0.0 for _ in range(3_000)]

    assert times(1) == times(1) != times(2)
    assert statistics.mean(times(1)) == pytest.approx(2.0, rel=0.03)
    assert statistics.stdev(times(1)) == pytest.approx(0.6, rel=0.06)


def test_workers_come_and_go() -> None:
    """Later numbers of workers hold from some seconds after the first request on."""
    clock = SimClock(START, runs=False)
    changes = (WorkersFrom(1, 60.0), WorkersFrom(3, 120.0))
    speed = Speed(workers=2, request_s=1.0, bar_s=0.0, changes=changes)
    workers = Workers(speed, lambda: clock.now().timestamp())
    assert [workers.reserve(0) for _ in range(3)] == pytest.approx([1.0, 1.0, 2.0])
    clock.set(START + timedelta(seconds=60))
    assert [workers.reserve(0) for _ in range(3)] == pytest.approx([1.0, 2.0, 3.0])
    clock.set(START + timedelta(seconds=120))
    assert [workers.reserve(0) for _ in range(4)] == pytest.approx([1.0, 1.0, 1.0, 2.0])


def test_requests_with_an_end_wait_under_soft_pacing(synthetic: SyntheticMarket) -> None:
    """A request without an end gets its response before an earlier one with an end."""
    speed = Speed(workers=2, request_s=3_600.0, bar_s=0.0, end_factor=3_600_000.0)
    with (
        fixed_clock_gateway(synthetic, SimulatedPacing.SOFT, speed=speed) as (server, _),
        raw_client(server) as client,
    ):
        client.bars(1)
        client.bars(2, end="")
        assert client.until(17)[1] == "2"
        assert client.receives_none_of(17)


def test_an_overloaded_gateway_disconnects(synthetic: SyntheticMarket) -> None:
    """A full queue ends the connection, and is counted."""
    speed = Speed(workers=1, request_s=60.0, most_waiting=1)
    with fixed_clock_gateway(synthetic, SimulatedPacing.SOFT, speed=speed) as (server, _):
        with raw_client(server) as client:
            for number in range(3):
                client.bars(number, duration=f"{number + 1} D")
            assert client.is_ended()
        assert server.violations == {PacingRule.OVERLOAD: 1}


def test_the_log_holds_json_lines(tmp_path: Path) -> None:
    """Clients, requests with their outcome, and violations: one JSON object a line."""
    log = tmp_path / "gateway.log"
    behaviour = Behaviour(pacing=SimulatedPacing.HARD, log=log)
    with running_simulator(now=START, behaviour=behaviour) as server:
        with raw_client(server, 3) as client:
            request_bars(client, 1)
            request_bars(client, 2)
        counts = server.counts
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    events = [line["event"] for line in lines]
    assert events[:6] == ["connected", "asked", "answered", "violation", "asked", "answered"]
    assert counts["asked"] == 2
    first, second = (line for line in lines if line["event"] == "answered")
    assert (first["count"], first["symbol"], first["client_id"]) == (7, "AAPL", 3)
    assert (second["error_code"], lines[3]["rule"]) == (162, "identical")
    assert all(datetime.fromisoformat(line["at"]) >= START for line in lines)


def test_a_log_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    """The error names the file and the option."""
    with (
        pytest.raises(SimulatorError, match=r"nowhere.*--log"),
        running_simulator(behaviour=Behaviour(log=tmp_path / "nowhere" / "log")),
    ):
        pass
