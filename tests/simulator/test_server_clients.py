"""The same requests of both clients, ib_async and IB's own ibapi, get the same responses."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from itertools import cycle
from typing import Any

import pytest

from ktrdr_pipelines.simulator.market.synthetic import SyntheticMarket
from ktrdr_pipelines.simulator.protocol.account import VALUES
from ktrdr_pipelines.simulator.requests.durations import SIZE_BY_TEXT
from ktrdr_pipelines.simulator.requests.pacing_rules import SimulatedPacing
from ktrdr_pipelines.simulator.server import SimulatorServer, running_simulator
from ktrdr_pipelines.simulator.simulated_gateway import Behaviour
from tests.simulator.client_async import AsyncClient
from tests.simulator.client_official import OfficialClient
from tests.simulator.clients import Client, Response

SATURDAY = "2024-01-13T12:00:00+00:00"
"""Everything but crypto is closed: a response without an end does not depend on the moment."""

UNPACED = Behaviour(pacing=SimulatedPacing.OFF)
"""Two clients that ask the same break the rule of identical requests."""

END = "20240109-21:00:00"
Both = tuple[Client, Client]


def contract(symbol: str, sec_type: str, exchange: str, **other: Any) -> dict[str, Any]:
    """Return an instrument by IB's own fields."""
    fields = {"symbol": symbol, "secType": sec_type, "exchange": exchange, "currency": "USD"}
    return fields | other


@contextmanager
def both_clients(server: SimulatorServer) -> Iterator[tuple[Client, Client]]:
    """Connect one client of each kind, and disconnect them at the end."""
    one = AsyncClient(server.port, 31)
    try:
        other = OfficialClient(server.port, 32)
        try:
            yield one, other
        finally:
            other.close()
    finally:
        one.close()


AAPL = contract("AAPL", "STK", "SMART")
EURUSD = contract("EUR", "CASH", "IDEALPRO")
ESH4 = contract("ES", "FUT", "CME", lastTradeDateOrContractMonth="202403")
ESZ3 = contract("ES", "FUT", "CME", lastTradeDateOrContractMonth="20231215", includeExpired=True)
CLG4 = contract("CL", "FUT", "NYMEX", localSymbol="CLG4")
ES = contract("ES", "CONTFUT", "CME")
SPX = contract("SPX", "IND", "CBOE")
BTC = contract("BTC", "CRYPTO", "PAXOS")
ETH = contract("ETH", "CRYPTO", "ZEROHASH")

QUOTES = ("MIDPOINT", "BID", "ASK", "BID_ASK")
SERVED = [
    *((AAPL, what) for what in ("TRADES", "ADJUSTED_LAST", *QUOTES)),
    *((EURUSD, what) for what in QUOTES),
    *((ESH4, what) for what in ("TRADES", *QUOTES)),
    (ESZ3, "TRADES"),
    (CLG4, "TRADES"),
    (ES, "TRADES"),
    (SPX, "TRADES"),
    *((BTC, what) for what in ("AGGTRADES", *QUOTES)),
    (ETH, "AGGTRADES"),
]
WITHOUT_END = ((AAPL, "ADJUSTED_LAST"), (ES, "TRADES"))


@pytest.fixture(scope="module")
def closed(synthetic: SyntheticMarket) -> Iterator[SimulatorServer]:
    """Run a gateway on a Saturday."""
    with running_simulator(synthetic, now=SATURDAY, behaviour=UNPACED) as server:
        yield server


@pytest.fixture(scope="module")
def both(closed: SimulatorServer) -> Iterator[Both]:
    """Connect both clients for the tests of the module."""
    with both_clients(closed) as clients:
        yield clients


def same(both: Both, request: Any) -> Response:
    """Send a request from both clients, check that the responses are equal, and return one."""
    one, other = (request(client) for client in both)
    assert one == other
    assert isinstance(one, Response)
    return one


def name_of(value: Any) -> str:
    """Return the id of a test parameter."""
    return f"{value['secType']}-{value['symbol']}" if isinstance(value, dict) else str(value)


def test_both_speak_version_178(both: Both) -> None:
    """The gateway takes 178, although ibapi offers up to 226."""
    assert [(client.name, client.version) for client in both] == [("ib_async", 178), ("ibapi", 178)]


@pytest.mark.parametrize(("named", "what"), SERVED, ids=name_of)
def test_every_what_of_every_type_gets_the_same_bars(
    both: Both, *, named: dict[str, Any], what: str
) -> None:
    """Each type of instrument with all its values of whatToShow, hours and days."""
    end = "" if (named, what) in WITHOUT_END else END
    end = "20231214-21:00:00" if named is ESZ3 else end
    hours = same(both, lambda client: client.bars(named, "1 hour", "2 D", end=end, what=what))
    days = same(both, lambda client: client.bars(named, "1 day", "1 M", end=end, what=what))
    assert hours.errors == days.errors == []
    assert len(hours.rows) > 10
    assert 15 < len(days.rows) < 33
    has_volume = what in {"TRADES", "AGGTRADES", "ADJUSTED_LAST"} and named is not SPX
    assert all((row[5] > 0) == has_volume for row in hours.rows)


@pytest.mark.parametrize(
    ("named", "size"), list(zip(cycle([AAPL, ESH4, BTC]), SIZE_BY_TEXT, strict=False)), ids=name_of
)
def test_every_bar_size_gets_the_same_bars(both: Both, *, named: dict[str, Any], size: str) -> None:
    """All sizes from a second to a month, in all hours."""
    seconds = SIZE_BY_TEXT[size].seconds
    duration = "600 S" if seconds < 60 else "1 D" if seconds < 86_400 else "3 M"
    what = "AGGTRADES" if named is BTC else "TRADES"
    options = {"end": END, "what": what, "rth": False}
    found = same(both, lambda client: client.bars(named, size, duration, **options))
    dates = [row[0] for row in found.rows]
    assert dates == sorted(set(dates))
    if seconds < 60:
        assert len(dates) == 600 // seconds


@pytest.mark.parametrize(
    ("named", "size"),
    [(AAPL, "1 min"), (EURUSD, "1 hour"), (ESH4, "1 min"), (SPX, "1 day"), (BTC, "1 hour")],
    ids=name_of,
)
def test_texts_with_a_zone_mean_the_same_moments(
    both: Both, *, named: dict[str, Any], size: str
) -> None:
    """Format 1, the usual default: the exchange's zone, and dates for days."""
    what = {"CASH": "MIDPOINT", "CRYPTO": "AGGTRADES"}.get(named["secType"], "TRADES")
    options = {"end": END, "what": what}
    texts = same(both, lambda client: client.bars(named, size, "1 D", format=1, **options))
    epochs = same(both, lambda client: client.bars(named, size, "1 D", **options))
    assert texts == epochs
    assert texts.rows


@pytest.mark.parametrize("named", [AAPL, EURUSD, ESH4, ESZ3, CLG4, ES, SPX, BTC, ETH], ids=name_of)
def test_every_type_is_described_alike(both: Both, named: dict[str, Any]) -> None:
    """Both clients decode the details of each type into the same fields."""
    found = same(both, lambda client: client.details(named))
    (row,) = found.rows
    assert row[1:3] == (named["symbol"], named["secType"])


def test_futures_state_their_last_trade_date(both: Both) -> None:
    """Date, time and zone are separate fields; the chain has the id of its front contract."""
    (row,) = both[1].details(ESH4).rows
    (front,) = both[1].details(ES).rows
    assert (row[3], row[5], row[9]) == ("20240315", "50", "ESH4")
    assert (row[14], row[15], row[21]) == ("202403", "US/Central", "08:30:00")
    assert row[16].startswith(
        "20240113:CLOSED;20240114:1700-20240115:1200;20240115:1700-20240116:1600;"
    )
    assert row[17].startswith("20240113:CLOSED;20240114:CLOSED;20240115:0830-20240115:1200;")
    assert (front[0], front[2], front[9]) == (row[0], "CONTFUT", "ESH4")
    pinned = contract("ES", "CONTFUT", "CME", conId=front[0])
    assert both[0].bars(pinned, "1 day", "5 D").rows == both[0].bars(ES, "1 day", "5 D").rows


@pytest.mark.parametrize(
    ("named", "zone", "last"),
    [
        (AAPL, "US/Eastern", ("20240112-09:30:00", "20240112-16:00:00", "20240112")),
        (EURUSD, "US/Eastern", ("20240111-17:15:00", "20240112-17:00:00", "20240112")),
        (ESH4, "US/Central", ("20240112-08:30:00", "20240112-16:00:00", "20240112")),
        (CLG4, "US/Eastern", ("20240112-09:00:00", "20240112-14:30:00", "20240112")),
        (SPX, "US/Central", ("20240112-08:30:00", "20240112-15:00:00", "20240112")),
        (BTC, "UTC", ("20240112-00:00:00", "20240113-00:00:00", "20240112")),
    ],
    ids=name_of,
)
def test_schedules_are_in_the_exchanges_zone(
    both: Both, *, named: dict[str, Any], zone: str, last: tuple[str, str, str]
) -> None:
    """Sessions back from Saturday noon, in local time although the texts have a dash."""
    end = "20240113-00:00:00"
    found = same(both, lambda client: client.schedule(named, 5, end))
    assert found.rows[0][0] == zone
    assert len(found.rows[0]) == 6
    assert found.rows[0][-1] == last


@pytest.mark.parametrize(
    ("named", "what", "head"),
    [
        (AAPL, "TRADES", "1980-12-12T14:30:00+00:00"),
        (ESH4, "TRADES", "2022-12-15T14:30:00+00:00"),
        (ES, "TRADES", "1997-09-09T13:30:00+00:00"),
        (SPX, "TRADES", "1980-01-02T14:30:00+00:00"),
        (BTC, "AGGTRADES", "2015-01-02T00:00:00+00:00"),
    ],
    ids=name_of,
)
def test_heads_are_the_same(both: Both, *, named: dict[str, Any], what: str, head: str) -> None:
    """The oldest bar of each type, in epoch seconds."""
    found = same(both, lambda client: client.head(named, what))
    moment = datetime.fromtimestamp(int(found.rows[0][0]), UTC)
    assert moment == datetime.fromisoformat(head)


NO_DEFINITION = "No security definition has been found for the request"
NO_HISTORY = "Historical Market Data Service error message:No historical market data for "
CAUSE = "Error validating request.-'bK' : cause - "
REFUSED = [
    (EURUSD, {"what": "TRADES"}, 162, f"{NO_HISTORY}EUR/CASH@FXSUBPIP Last 3600"),
    (SPX, {"what": "MIDPOINT"}, 162, f"{NO_HISTORY}SPX/IND@CBOE MidPoint 3600"),
    (BTC, {"what": "TRADES"}, 10299, "Expected what to show is AGGTRADES, please use that"),
    (AAPL, {"what": "AGGTRADES"}, 10299, "Expected what to show is TRADES, please use that"),
    (ES, {"end": END}, 10339, "Setting end date/time for continuous future security type"),
    (AAPL, {"what": "ADJUSTED_LAST", "end": END}, 321, f"{CAUSE}End date not supported with adj"),
    (AAPL, {"what": "ADJUSTED_LAST", "size": "1 week"}, 321, f"{CAUSE}Multi day bar size not"),
    (AAPL, {"what": "SCHEDULE"}, 321, f"{CAUSE}Only daily resolution supported for Schedule"),
    (AAPL, {"end": "yesterday"}, 10314, "End Date/Time: The date, time, or time-zone entered"),
    (AAPL | {"symbol": "NOSUCH"}, {}, 200, NO_DEFINITION),
    (ESZ3 | {"includeExpired": False}, {}, 200, NO_DEFINITION),
    (ESZ3 | {"lastTradeDateOrContractMonth": "201812"}, {}, 166, "HMDS Expired Contract Violation"),
    (ESH4 | {"lastTradeDateOrContractMonth": ""}, {}, 200, "The contract description specified f"),
    (AAPL | {"symbol": "SHOP", "currency": ""}, {}, 200, "The contract description specified for"),
    (AAPL | {"symbol": "TWIN"}, {}, 200, "The contract description specified for TWIN is ambiguou"),
]


@pytest.mark.parametrize(("named", "changes", "code", "text"), REFUSED)
def test_refusals_are_the_same(
    both: Both, *, named: dict[str, Any], changes: dict[str, Any], code: int, text: str
) -> None:
    """Both clients get the same code and text, and nothing else."""
    options = {"size": "1 hour", "duration": "1 D"} | changes
    found = same(both, lambda client: client.bars(named, **options))
    assert found.rows == []
    assert len(found.errors) == 1
    assert found.errors[0][0] == code
    assert found.errors[0][1].startswith(text)


@pytest.mark.parametrize(
    ("named", "listed"),
    [
        (AAPL | {"symbol": "SHOP", "currency": ""}, [("NYSE", "USD"), ("TSE", "CAD")]),
        (AAPL | {"symbol": "TWIN"}, [("NYSE", "USD"), ("AMEX", "USD")]),
        (contract("BTC", "CRYPTO", ""), [("", "USD"), ("", "USD")]),
    ],
    ids=name_of,
)
def test_details_list_every_match(
    both: Both, *, named: dict[str, Any], listed: list[tuple[str, str]]
) -> None:
    """An ambiguous contract is listed once for each match, with different ids."""
    found = same(both, lambda client: client.details(named))
    assert [(row[7], row[8]) for row in found.rows] == listed
    assert len({row[0] for row in found.rows}) == len(listed)


def test_currency_or_primary_exchange_decide(both: Both) -> None:
    """Currency or primary exchange decide; Toronto's bars are not New York's."""
    toronto = AAPL | {"symbol": "SHOP", "currency": "CAD"}
    amex = AAPL | {"symbol": "TWIN", "primaryExchange": "AMEX"}
    for named in (toronto, amex):
        assert same(both, lambda client, named=named: client.bars(named, "1 day", "5 D")).rows
    new_york = AAPL | {"symbol": "SHOP"}
    assert both[0].bars(toronto, "1 day", "5 D") != both[0].bars(new_york, "1 day", "5 D")


def test_the_account_has_money_and_no_positions(both: Both) -> None:
    """Summary, account updates and positions end for both clients, with the same values."""
    for client in both:
        assert client.summary()["NetLiquidation"] == "1000000.00"
        assert client.values() == VALUES
        assert client.positions() == 0


def test_both_clients_can_cancel(slow_gateway: SimulatorServer) -> None:
    """162 confirms the cancel of an open request; a second cancel gets 366."""
    with both_clients(slow_gateway) as clients:
        assert [client.cancelled(AAPL) for client in clients] == [[162, 366]] * 2


def test_live_bars_are_replaced_and_followed(synthetic: SyntheticMarket) -> None:
    """The newest bar becomes final, and a new one begins."""
    start = datetime.fromisoformat("2024-01-10T20:00:30+00:00")
    later = datetime.fromisoformat("2024-01-10T20:02:20+00:00")
    with (
        running_simulator(synthetic, now=start, update_s=0.01) as server,
        both_clients(server) as clients,
    ):
        for client in clients:
            server.clock.set(start)
            live = client.live(AAPL, "1 min", lambda: server.clock.set(later))
            later_bars = client.bars(AAPL, "1 min", "1 D")
            assert live.rows[:-1] == later_bars.rows[: len(live.rows) - 1]
            assert live.rows[-1][0] in {row[0] for row in later_bars.rows[-3:]}
        assert all(not record.is_open for record in server.requests)
