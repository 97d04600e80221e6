"""Every fault, over a real socket."""

import asyncio
from collections.abc import Callable
from contextlib import AbstractContextManager
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import pytest

from ktrdr_pipelines.simulator.faults.fault_file import example_text, parse_faults
from ktrdr_pipelines.simulator.faults.faults import Fault, FaultPlan, Met, Occasion
from ktrdr_pipelines.simulator.market.synthetic import SyntheticMarket
from ktrdr_pipelines.simulator.protocol.messages import ContractFields, HistoryRequest
from ktrdr_pipelines.simulator.server import SimulatorServer, running_simulator
from ktrdr_pipelines.simulator.serving import OpenRequest, follow
from ktrdr_pipelines.simulator.simulated_gateway import Behaviour
from tests.simulator.conftest import NOW
from tests.simulator.rawclient import (
    AAPL,
    END,
    RawClient,
    closes,
    dates,
    faulty_gateway,
    raw_client,
)


def faulty(
    market: SyntheticMarket, faults: str
) -> AbstractContextManager[tuple[SimulatorServer, RawClient]]:
    """Run a gateway with faults, and a client of it."""
    return faulty_gateway(market, faults, now=NOW)


def good_and_bad(market: SyntheticMarket, fault: str) -> tuple[list[str], list[str]]:
    """Request the same day twice, the second time with a fault; return both responses."""
    with faulty(market, f"{{{fault}, nth: 2}}") as (_, client):
        client.bars(1)
        client.bars(2)
        answers = {frame[1]: frame for frame in (client.until(17), client.until(17))}
        return answers["1"], answers["2"]


def test_silence(synthetic: SyntheticMarket) -> None:
    """The request gets no response and can be cancelled; others get theirs."""
    with faulty(synthetic, "{fault: silence, nth: 1}") as (server, client):
        client.bars(1)
        client.bars(2)
        assert client.until(17)[1] == "2"
        assert server.requests[0].is_open
        client.cancel(1)
        assert client.until(162)[2] == "1"


@pytest.mark.parametrize("fault", ["hang_up", "silence"])
def test_connections_that_are_closed_or_get_nothing(synthetic: SyntheticMarket, fault: str) -> None:
    """The gateway accepts, then closes or sends nothing."""
    behaviour = Behaviour(faults=parse_faults(f"faults: [{{fault: {fault}, kind: connect}}]", ""))
    with (
        running_simulator(synthetic, now=NOW, behaviour=behaviour) as server,
        raw_client(server) as client,
    ):
        if fault == "hang_up":
            assert client.is_ended()
        else:
            client.sock.settimeout(0.1)
            with pytest.raises(TimeoutError):
                client.frame()


def test_a_time_request_without_a_response(synthetic: SyntheticMarket) -> None:
    """A time request may get no response, too."""
    with faulty(synthetic, "{fault: silence, kind: time, nth: 1}") as (_, client):
        client.send(49, 1)
        client.send(49, 1)
        client.bars(1)
        client.until(17)
        assert [frame[0] for frame in client.seen].count("49") == 1


@pytest.mark.parametrize("fault", ["hang_up", "cut"])
def test_the_connection_ends_instead_of_a_response_or_inside(
    synthetic: SyntheticMarket, fault: str
) -> None:
    """The connection ends without a complete response."""
    with faulty(synthetic, f"{{fault: {fault}}}") as (_, client):
        client.bars(1)
        assert client.is_ended()
        assert "17" not in [frame[0] for frame in client.seen]


def test_late_and_trickling_responses_are_complete(synthetic: SyntheticMarket) -> None:
    """They are delayed; other responses meanwhile are complete frames."""
    faults = "{fault: late, seconds: 0.05, nth: 1}, {fault: trickle, seconds: 0.1, nth: 2}"
    with faulty(synthetic, faults) as (_, client):
        client.bars(1)
        client.bars(2)
        for _ in range(5):
            client.send(49, 1)
        answers = [client.until(17), client.until(17)]
        assert [frame[4] for frame in answers] == ["7", "7"]


def test_bars_after_a_cancel(synthetic: SyntheticMarket) -> None:
    """The bars follow the confirmation of the cancel."""
    faults = "{fault: bars_after_cancel, seconds: 0.01}"
    with faulty(synthetic, faults) as (server, client):
        client.bars(1)
        assert client.receives_none_of(17)
        client.cancel(1)
        client.until(162)
        assert client.until(17)[1] == "1"
        assert server.requests[0].error_code == 162


def test_live_bars_after_a_cancel_come_once(synthetic: SyntheticMarket) -> None:
    """A cancelled request for live bars gets one response and no update."""
    faults = "{fault: bars_after_cancel, seconds: 0.01}"
    with faulty(synthetic, faults) as (_, client):
        client.send(20, 1, *AAPL, 0, "", "1 hour", "1 D", 1, "TRADES", 2, 1, "")
        client.cancel(1)
        client.until(162)
        assert client.until(17)[1] == "1"
        client.bars(2)
        client.cancel(2)
        assert client.until(17)[1] == "2"


def test_live_bars_that_come_after_a_cancel_are_not_kept_up_to_date(
    synthetic: SyntheticMarket, fields_of: Callable[..., ContractFields]
) -> None:
    """Following a cancelled request ends at once."""
    texts = ("", "1 min", "1 D", True, "TRADES", 2, True)
    request = HistoryRequest(1, fields_of("AAPL"), *texts)
    gateway = SimulatorServer(synthetic, behaviour=Behaviour(update_s=3_600.0))._gateway
    sent: list[bytes] = []

    async def run() -> None:
        call = OpenRequest(request, 1, 0, 178, None, 0, answered_at=gateway.setting(178))
        call.cancelled.set()
        outbox = SimpleNamespace(send=sent.append)
        await asyncio.wait_for(follow(gateway, outbox, call), 60)  # type: ignore[arg-type]

    asyncio.run(run())
    assert sent == []


@pytest.mark.parametrize(
    ("fault", "code", "text"),
    [
        ("fault: invalid", 321, "Error validating request"),
        ("fault: unknown_contract", 200, "No security definition"),
        ("fault: no_data", 162, "HMDS query returned no data: AAPL@SMART Trades"),
        ("fault: pacing", 162, "pacing violation"),
        ("fault: error, code: 10197, text: No data during competing session", 10197, "competing"),
    ],
)
def test_injected_errors(synthetic: SyntheticMarket, fault: str, code: int, text: str) -> None:
    """A valid request gets the injected error."""
    with faulty(synthetic, f"{{{fault}}}") as (_, client):
        client.bars(1)
        assert text in client.until(code, 1)[4]


def test_nothing_past_the_oldest_bar(synthetic: SyntheticMarket) -> None:
    """A request that reaches before the listing gets no data, a narrower one its bars."""
    with faulty(synthetic, "{fault: past_oldest}") as (_, client):
        client.bars(1, size="1 day", duration="10 D", end="19801216-21:00:00")
        assert "no data" in client.until(162, 1)[4]
        client.bars(2, size="1 day", duration="2 D", end="19801216-21:00:00")
        assert client.until(17)[4] == "2"


def test_the_newest_bars_are_missing(synthetic: SyntheticMarket) -> None:
    """Notice 2188 is first, and the response lacks the last bars."""
    with faulty(synthetic, "{fault: newest_missing, bars: 2}") as (_, client):
        client.bars(1)
        assert client.until(2188)[2] == "1"
        assert len(dates(client.until(17))) == 5


def test_partial_responses_hold_the_newest_bars(synthetic: SyntheticMarket) -> None:
    """Only a share of the bars is returned."""
    good, bad = good_and_bad(synthetic, "fault: partial, share: 0.3")
    assert dates(bad) == dates(good)[-2:]


@pytest.mark.parametrize(("fault", "count"), [("partial", 3), ("duplicated", 10), ("restated", 7)])
def test_bars_are_counted_as_they_were_sent(
    synthetic: SyntheticMarket, fault: str, count: int
) -> None:
    """The log counts the sent bars."""
    with faulty(synthetic, f"{{fault: {fault}}}") as (server, client):
        client.bars(1)
        assert client.until(17)[4] == str(count)
        assert server.requests[0].count == count


def test_duplicated_and_conflicting_bars(synthetic: SyntheticMarket) -> None:
    """Bars are sent twice, equal or with other prices; the count includes them."""
    good, bad = good_and_bad(synthetic, "fault: duplicated")
    assert sorted(set(dates(bad))) == dates(good)
    assert bad[4] == "10"
    good, bad = good_and_bad(synthetic, "fault: conflicting")
    assert dates(bad)[-1] == dates(bad)[-2] == dates(good)[-1]
    assert closes(bad)[-1] != closes(bad)[-2]


def test_unordered_bars(synthetic: SyntheticMarket) -> None:
    """All bars are sent, in random order."""
    good, bad = good_and_bad(synthetic, "fault: unordered")
    assert dates(bad) != dates(good)
    assert sorted(dates(bad)) == dates(good)


def test_restated_bars(synthetic: SyntheticMarket) -> None:
    """Prices are scaled by the factor, volumes inversely."""
    good, bad = good_and_bad(synthetic, "fault: restated, factor: 0.25")
    assert [float(text) for text in closes(bad)] == [float(text) / 4 for text in closes(good)]
    assert float(bad[10]) == float(good[10]) * 4


@pytest.mark.parametrize(
    ("size", "start", "until"),
    [
        ("1 hour", "2024-01-09T15:00:00Z", "2024-01-09T17:00:00Z"),
        ("1 day", "2024-01-09T00:00:00Z", "2024-01-10T00:00:00Z"),
    ],
)
@pytest.mark.parametrize("format_date", ["1", "2"])
def test_some_bars_are_restated_from_a_moment_on(
    synthetic: SyntheticMarket, *, size: str, start: str, until: str, format_date: str
) -> None:
    """Those that start in a range, in every response once the gateway's time has come."""
    fault = (
        "{fault: restated, factor: 1.01, from: 2024-01-11T02:00:00Z, "
        f"bars_from: {start}, bars_until: {until}}}"
    )
    with faulty(synthetic, fault) as (server, client):
        answers = []
        for number in (1, 2, 3):
            texts = (END, size, "5 D", 1, "TRADES", format_date, 0, "")
            client.send(20, number, *AAPL, 0, *texts)
            answers.append(client.until(17, number))
            server.clock.set(datetime(2024, 1, 11, 1 + number, tzinfo=UTC))
    good, bad, again = answers
    changed = [
        at
        for at, (one, other) in enumerate(zip(closes(good), closes(bad), strict=True))
        if one != other
    ]
    # The session's last day, or its hours from 10:00 to 12:00 in New York.
    assert changed == ([4] if size == "1 day" else [29, 30])
    assert float(closes(bad)[changed[0]]) == pytest.approx(1.01 * float(closes(good)[changed[0]]))
    assert bad[5:] == again[5:]


@pytest.mark.parametrize("code", [1101, 1102])
def test_the_link_is_lost_and_restored(synthetic: SyntheticMarket, code: int) -> None:
    """1100, open requests hang, then 1101 or 1102; every client gets the notices."""
    faults = f"{{fault: link_lost, seconds: 3600, code: {code}, nth: 1}}"
    with faulty(synthetic, faults) as (server, client), raw_client(server, 2) as other:
        other.until(2158)
        client.bars(1)
        client.until(1100)
        client.bars(2)
        other.until(1100)
        assert client.receives_none_of(17)
        server.lift_faults()
        other.until(code)
        client.until(code)
        client.bars(3)
        assert client.until(17)[1] == "3"
        assert client.receives_none_of(17)


def test_live_bars_hang_in_an_outage(synthetic: SyntheticMarket) -> None:
    """After the start of an outage no update is sent."""
    behaviour = Behaviour(faults=parse_faults("faults: [{fault: link_lost, nth: 2}]", ""))
    with (
        running_simulator(synthetic, now=NOW, behaviour=behaviour, update_s=0.0) as server,
        raw_client(server) as client,
    ):
        client.send(20, 1, *AAPL, 0, "", "1 min", "1 D", 1, "TRADES", 2, 1, "")
        client.until(90)
        client.bars(2)
        client.until(1100)
        for minutes in range(1, 20):
            server.clock.set(datetime.fromisoformat(NOW) + timedelta(minutes=minutes))
            assert client.receives_none_of(90)
        server.lift_faults()
        client.until(1102)
        assert client.receives_none_of(17, 90)


def test_an_outage_ends_by_itself(synthetic: SyntheticMarket) -> None:
    """After its seconds the link is back, and requests get responses."""
    with faulty(synthetic, "{fault: link_lost, seconds: 0.1, nth: 1}") as (_, client):
        client.bars(1)
        client.until(1100)
        client.until(1102)
        client.bars(2)
        assert client.until(17)[1] == "2"


def test_a_new_client_gets_the_notices_of_an_outage(synthetic: SyntheticMarket) -> None:
    """A client that connects while the farm is broken gets 2105, and 2106 later."""
    with faulty(synthetic, "{fault: farm_broken, seconds: 60}") as (server, client):
        client.bars(1)
        client.until(2105)
        with raw_client(server, 2) as other:
            other.until(2105)
            other.bars(1)
            assert other.receives_none_of(17)
            server.lift_faults()
            other.until(2106)
            other.bars(2)
            assert other.until(17)[1] == "2"


def test_the_nightly_reset(synthetic: SyntheticMarket) -> None:
    """Sockets are accepted, no request gets a response, then all connections end."""
    with faulty(synthetic, "{fault: nightly_reset, seconds: 60}") as (server, client):
        client.bars(1)
        with raw_client(server, 2) as other:
            other.until(2158)
            other.send(49, 1)
            other.bars(1)
            other.sock.settimeout(0.1)
            with pytest.raises(TimeoutError):
                other.frame()
            server.lift_faults()
            other.sock.settimeout(60)
            assert other.is_ended()
        assert client.is_ended()
        with raw_client(server, 3) as again:
            again.bars(1)
            assert again.until(17)


def test_a_clock_that_is_off(synthetic: SyntheticMarket) -> None:
    """The stated time is minutes off; the bars are those of the true time."""
    with faulty(synthetic, "{fault: clock_off, minutes: -10}") as (server, client):
        before = server.clock.now().timestamp()
        client.send(49, 1)
        stated = int(client.until(49)[2])
        client.bars(1, size="1 min", end="")
        newest = int(dates(client.until(17))[-1])
        after = server.clock.now().timestamp()
    assert int(before) - 600 <= stated <= after - 600
    assert before - 60 < newest <= after


def test_selectors_must_all_match() -> None:
    """Kind, symbol, time, nth and times must all match; entries count separately."""
    plan = parse_faults(
        "faults: [{fault: silence, symbol: AAPL, nth: [2, 3], times: 1},"
        " {fault: error, code: 1, kind: head, from: 2024-01-02T00:00:00Z,"
        " until: 2024-01-03T00:00:00Z}]",
        "faults",
    )
    aapl, msft = frozenset({"AAPL"}), frozenset({"MSFT"})
    chosen = [plan.choose(Met(Occasion.HISTORY, name)) for name in (aapl, msft, aapl, aapl, aapl)]
    assert [rule is not None for rule in chosen] == [False, False, True, False, False]
    days = [datetime(2024, 1, day, tzinfo=UTC) for day in (1, 2, 3)]
    heads = [plan.choose(Met(Occasion.HEAD, aapl, day)) for day in days]
    assert [rule is not None for rule in heads] == [False, True, False]
    assert plan.happened == (1, 1)


def test_chance_is_repeatable() -> None:
    """A seed gives the same faults again, another seed gives others."""

    def sent(seed: int) -> list[bool]:
        text = f"seed: {seed}\nfaults: [{{fault: silence, probability: 0.3}}]"
        plan = parse_faults(text, "faults")
        return [plan.choose(Met(Occasion.HISTORY)) is not None for _ in range(200)]

    assert sent(1) == sent(1) != sent(2)
    assert 30 < sum(sent(1)) < 90


def test_without_faults_nothing_happens() -> None:
    """An empty plan chooses no fault."""
    assert FaultPlan().choose(Met(Occasion.HISTORY)) is None


def test_a_pair_is_named_by_both_currencies(synthetic: SyntheticMarket) -> None:
    """EURUSD in a file means EUR against USD."""
    with faulty(synthetic, "{fault: no_data, symbol: EURUSD}") as (_, client):
        pair = ("0", "EUR", "CASH", "", "0.0", "", "", "IDEALPRO", "", "USD", "", "")
        chosen = ("20240109-21:00:00", "1 hour", "1 D", "1", "MIDPOINT", "2", "0", "")
        client.send(20, 1, *pair, 0, *chosen)
        assert client.until(162)[2] == "1"
        client.send(20, 2, *AAPL, 0, *chosen)
        assert client.until(17)[1] == "2"


def test_past_oldest_hides_no_other_fault(synthetic: SyntheticMarket) -> None:
    """Requests that do not reach there meet the next entry."""
    faults = "{fault: past_oldest}, {fault: invalid, nth: 3}"
    with faulty(synthetic, faults) as (server, client):
        client.bars(1, size="1 day", end="19801222-00:00:00", duration="1 M")
        assert client.until(162)[4].endswith("HMDS query returned no data: AAPL@SMART Trades")
        client.bars(2)
        assert client.until(17)[1] == "2"
        assert server.counts["fault"] == 1
        client.bars(3)
        assert client.until(321)[2] == "3"


def test_the_example_names_every_fault() -> None:
    """The example file is valid, and has every fault."""
    plan = parse_faults(example_text(), "example")
    assert {rule.fault for rule in plan.rules} == set(Fault)


def test_every_entry_of_the_example_happens() -> None:
    """No entry of the example is hidden by an earlier one."""
    plan = parse_faults(example_text(), "example")
    now = datetime(2024, 1, 10, 15, tzinfo=UTC)
    for symbol in ("IBM",) * 400 + ("AAPL", "MSFT", "SPY") * 3:
        for occasion in (Occasion.CONNECT, Occasion.CONTRACT, Occasion.HISTORY):
            plan.choose(Met(occasion, frozenset({symbol}), now))
    plan.choose(Met(Occasion.HISTORY, frozenset({"IBM"}), now, is_past_oldest=True))
    empty = [rule.fault for rule, count in zip(plan.rules, plan.happened, strict=True) if not count]
    assert empty == [Fault.CLOCK_OFF]
    assert plan.clock_off_s(datetime(2030, 1, 1, tzinfo=UTC)) == -600
