"""Published frames of live gateways against the simulator's for the same requests.

Numbers (prices, ids, counts) are compared by their form: every number is ``#`` but ``-1``, which
means "not available". Codes, texts, zones, dates and hours are compared as they are. Fields that a
published frame lacks (it is cut, or decoded) are not compared.
"""

import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from ktrdr_pipelines.simulator.faults.fault_file import parse_faults
from ktrdr_pipelines.simulator.market.listings import listings
from ktrdr_pipelines.simulator.market.simulated_instruments import Expiry
from ktrdr_pipelines.simulator.market.synthetic import SyntheticMarket
from ktrdr_pipelines.simulator.protocol.messages import HistoryRequest, decode
from ktrdr_pipelines.simulator.protocol.replies import last_trade_text
from ktrdr_pipelines.simulator.requests.answers import Setting, answer
from ktrdr_pipelines.simulator.server import running_simulator
from ktrdr_pipelines.simulator.simulated_gateway import Behaviour
from ktrdr_pipelines.simulator.variants import (
    BeforeFirstTrade,
    Language,
    MarketVariants,
    Variants,
    ZoneNames,
)
from tests.simulator.conftest import frames_of
from tests.simulator.rawclient import AAPL, Frame, RawClient
from tests.support.recorded_frames import (
    BAR_SIZE_REFUSED,
    BOND,
    BOND_REQUEST,
    EURUSD_HOURS,
    MES_DETAILS,
    TESLA_DETAILS,
)

_NUMBER = re.compile(r"-?[0-9]+(\.[0-9]*)?([eE][+-]?[0-9]+)?")
_DATE = re.compile(r"20[0-9]{6}")

LOST = "Connectivity between IBKR and Trader Workstation has been lost."


def shape(fields: Frame) -> Frame:
    """Return fields with every number but dates and -1 as ``#``."""
    return [_shape(text) for text in fields]


def _shape(text: str) -> str:
    if text == "-1" or _DATE.fullmatch(text) or not _NUMBER.fullmatch(text):
        return text
    return "#"


def response_to(
    *fields: object,
    now: str,
    variants: Variants = Variants(),  # noqa: B008 - immutable
    market: SyntheticMarket | None = None,
) -> list[Frame]:
    """Return the simulator's response to the fields of a client's message."""
    now_s = int(datetime.fromisoformat(now).timestamp())
    setting = Setting(market or SyntheticMarket(1), 178, now_s, variants=variants)
    request = decode([str(field) for field in fields])
    return frames_of(answer(setting, request).data)  # type: ignore[arg-type]


def details(contract: tuple[object, ...], now: str, **other: Any) -> Frame:
    """Return message 10 of the only contract that matches."""
    found, end = response_to(9, 8, 7, *contract, 0, "", "", "", now=now, **other)
    assert end == ["52", "1", "7"]
    return found


def contract_texts(symbol: str, sec_type: str, exchange: str, **other: str) -> tuple[object, ...]:
    """Return the twelve fields of a contract as ib_async sends them."""
    known = {"month": "", "currency": "USD"} | other
    kind = (0, symbol, sec_type, known["month"], "0.0", "", "", exchange)
    return (*kind, "", known["currency"], "", "")


@contextmanager
def connected(
    now: str,
    *,
    versions: str = "v157..178",
    variants: Variants = Variants(),  # noqa: B008 - immutable
    faults: str = "",
) -> Iterator[tuple[bytes, RawClient]]:
    """Connect to a gateway; yield the bytes of its greeting, and the client."""
    plan = parse_faults(f"faults: [{faults}]", "faults")
    behaviour = Behaviour(variants=variants, faults=plan)
    with (
        running_simulator(SyntheticMarket(1), now=now, behaviour=behaviour) as server,
        socket.create_connection(("127.0.0.1", server.port), timeout=60) as sock,
    ):
        client, payload = RawClient(sock), versions.encode()
        sock.sendall(b"API\0" + len(payload).to_bytes(4) + payload)
        greeting = client.payload()
        assert greeting is not None
        client.send(71, 2, 1, "")
        yield greeting, client


# --- message 17 --------------------------------------------------------------------------------


def test_eight_days_of_quotes_to_a_sunday() -> None:
    """The complete frame: eight sessions, of which three lie before the stated start."""
    request = BOND_REQUEST.replace("US912797PA95,BOND", "AAPL,STK").split(",")
    (found,) = response_to(*request, now="2025-04-13T21:56:00+00:00")
    assert shape(found) == shape(BOND.split(","))


def test_hours_of_a_pair_begin_at_a_quarter_past() -> None:
    """Beginning of the frame; the days over New Year are not those of the simulator's calendar."""
    literal = EURUSD_HOURS.split(",")
    pair = contract_texts("EUR", "CASH", "IDEALPRO")
    end = "20230211 20:19:28 US/Eastern"
    request = (20, 3, *pair, 0, end, "1 hour", "30 D", 1, "MIDPOINT", 1, 0, "")
    (found,) = response_to(*request, now="2023-02-12T01:19:28+00:00")
    assert shape(found[:5]) == shape(literal[:5])
    assert len(found) == 5 + 8 * int(found[4])
    clock, first = slice(8, None), len(literal)
    assert [text[clock] for text in found[5:first:8]] == [text[clock] for text in literal[5::8]]
    for bar in range(6, first, 8):
        assert shape(found[bar : bar + 7]) == shape(literal[bar : bar + 7])


def test_seven_days_over_a_holiday_include_the_running_session() -> None:
    """As the client decoded it, whose login was two hours ahead of UTC.

    Source: https://github.com/wboayue/rust-ibapi/issues/93.
    """
    request = (
        20,
        1,
        *contract_texts("AAPL", "STK", "SMART"),
        0,
        "",
        "1 day",
        "7 D",
        1,
        "MIDPOINT",
        1,
        0,
        "",
    )
    variants = Variants(zone="Europe/Berlin")
    (found,) = response_to(*request, now="2023-06-27T20:26:08+02:00", variants=variants)
    assert found[2:4] == ["20230620 20:26:08 Europe/Berlin", "20230627 20:26:08 Europe/Berlin"]
    days = ["20230616", "20230620", *(f"202306{day}" for day in (21, 22, 23, 26, 27))]
    assert found[5::8] == days
    assert found[10::8] == found[11::8] == found[12::8] == ["-1"] * 7


def test_a_minute_without_a_trade() -> None:
    """``19:39 o=h=l=c=537.13 volume=0.0 average=537.13 barCount=0`` among those that have one.

    Source: https://github.com/ib-api-reloaded/ib_async/issues/23.
    """
    market = SyntheticMarket(1, MarketVariants(flat_bars=frozenset({"THIN"})))
    stock, end = contract_texts("THIN", "STK", "SMART"), "20240110-01:00:00"
    request = (20, 1, *stock, 0, end, "1 min", "1 D", 0, "TRADES", 2, 0, "")
    (found,) = response_to(*request, now="2024-01-10T02:00:00+00:00", market=market)
    rows = [[float(text) for text in found[at + 1 : at + 8]] for at in range(5, len(found), 8)]
    flat = [row for row in rows if row[6] == 0]
    assert 0 < len(flat) < len(rows)
    assert all(len({*row[:4], row[5]}) == 1 and row[4] == 0 for row in flat)


# --- message 10 --------------------------------------------------------------------------------


def test_a_future_in_the_days_of_christmas() -> None:
    """The date is in the zone of the login, the hours are in that of the exchange."""
    literal = MES_DETAILS.split(",")
    contract = contract_texts("MES", "FUT", "CME", month="202603")
    variants = Variants(zone="Europe/Zurich")
    found = details(contract, "2025-12-23T23:30:00+00:00", variants=variants)
    literal[15] = found[15]  # the log names no order types
    assert shape(found[:27]) == shape(literal[:27])
    assert found[27].startswith(literal[27])


# https://github.com/ib-api-reloaded/ib_async/issues/128; not in the order of their ends
GOLD = (
    "10,9,GC,FUT,20260225 19:30:00 Europe/Zurich,0,,COMEX,USD,GCG6,GC,GC,693609539,0.1,100",
    "10,9,GC,FUT,20251229 19:30:00 Europe/Zurich,0,,COMEX,USD,GCZ5,GC,GC,397594951,0.1,100",
    "10,9,GC,FUT,20260128 19:30:00 Europe/Zurich,0,,COMEX,USD,GCF6,GC,GC,760200558,0.1,100",
)


@pytest.mark.parametrize("frame", GOLD)
def test_contracts_of_gold(frame: str) -> None:
    """Their ends and names; December's name has the year before."""
    literal = frame.split(",")
    variants, now = Variants(zone="Europe/Zurich"), "2025-12-23T23:30:00+00:00"
    *rows, _ = response_to(
        9, 8, 9, *contract_texts("GC", "FUT", "COMEX"), 0, "", "", "", now=now, variants=variants
    )
    (found,) = (row for row in rows if row[9] == literal[9])
    assert shape(found[:15]) == shape(literal)


@pytest.mark.parametrize(
    ("text", "ends"),
    [
        # an option of New York, https://github.com/erdewit/ib_insync/issues/605
        ("20230624 04:00:00 Asia/Shanghai", "2023-06-23T16:00:00-04:00"),
        # futures of ICE, https://github.com/pst-group/pysystemtrade/issues/1244
        ("20250915 10:00:00 GB", "2025-09-15T10:00:00+01:00"),
        ("20231110 12:00:00 GB", "2023-11-10T12:00:00+00:00"),
        ("20231124 12:30:00 GB", "2023-11-24T12:30:00+00:00"),
    ],
)
def test_last_trade_dates(text: str, ends: str) -> None:
    """The end in the zone of the login, under the login's name of the zone."""
    zone = text.rpartition(" ")[2]
    moment = datetime.fromisoformat(ends)
    expiry = Expiry("", f"{moment:%Y%m%d}", f"{moment:%H:%M:%S}", 0, int(moment.timestamp()))
    contract = replace(next(iter(listings())), expiry=expiry)
    assert last_trade_text(contract, Variants(zone=zone), now_s=0) == text


def test_a_last_trade_date_far_ahead() -> None:
    """``20251219`` without a time, from a gateway that states others with one.

    Source: https://github.com/erdewit/ib_insync/issues/605.
    """
    variants = Variants(zone="Asia/Shanghai", plain_expiry_days=365)
    contract = contract_texts("ES", "FUT", "CME", month="202512")
    found = details(contract, "2024-12-01T00:00:00+00:00", variants=variants)
    assert found[4] == found[-5] == "20251219"


def test_a_stock_over_new_year() -> None:
    """All fields but the industry and the ISIN, which the simulator's stocks do not have."""
    literal = TESLA_DETAILS.removesuffix("|").split("|")
    found = details(contract_texts("TSLA", "STK", "SMART"), "2022-12-29T12:00:00+00:00")
    industry, exchanges = slice(22, 25), 16
    assert found[industry] == [""] * 3
    assert found[exchanges].startswith("SMART,")
    literal[industry], literal[exchanges], literal[15] = [""] * 3, found[exchanges], found[15]
    before_ids, ids = 30, 2 * int(literal[30])
    assert shape(found[:before_ids]) == shape(literal[:before_ids])
    literal_end, found_end = literal[before_ids + 1 + ids :], found[before_ids + 1 :]
    rules = 3  # a list of numbers
    assert shape(found_end[:rules]) == shape(literal_end[:rules])
    assert shape(found_end[rules + 1 :]) == shape(literal_end[rules + 1 :])


PAIR_HOURS = (
    "20221205:1715-20221206:1700;20221206:1715-20221207:1700;20221207:1715-20221208:1700;"
    "20221208:1715-20221209:1700;20221210:CLOSED;20221211:1715-20221212:1700"
)
INDEX_HOURS = (
    "20260514:0830-20260514:1500;20260515:0830-20260515:1500;20260516:CLOSED;20260517:CLOSED;"
    "20260518:0830-20260518:1500"
)


@pytest.mark.parametrize(
    ("contract", "now", "zone", "hours"),
    [
        # test stubs of nautechsystems/nautilus_trader, 6 December 2022: a pair
        (
            contract_texts("EUR", "CASH", "IDEALPRO"),
            "2022-12-06T12:00:00+00:00",
            "US/Eastern",
            PAIR_HOURS,
        ),
        # the same, 20 July 2024: futures' options, whose first session ends earlier
        (
            contract_texts("MES", "FUT", "CME", month="202409"),
            "2024-07-20T12:00:00+00:00",
            "US/Central",
            "20240720:CLOSED;20240721:1700-20240722:1",
        ),
        # an author's list of 14 May 2026, "real strings sampled": an index
        (
            contract_texts("SPX", "IND", "CBOE"),
            "2026-05-14T12:00:00+00:00",
            "US/Central",
            INDEX_HOURS,
        ),
    ],
)
def test_trading_hours(contract: tuple[object, ...], now: str, zone: str, hours: str) -> None:
    """A day that a session touches is not CLOSED."""
    found = details(contract, now)
    assert found[25] == zone
    assert found[26].startswith(hours)


def test_hours_of_crypto() -> None:
    """``20260507:1601-20260508:1600;20260509:CLOSED``: an author's list of May 2026."""
    market = SyntheticMarket(1, MarketVariants(crypto_zone="US/Eastern"))
    contract = contract_texts("BTC", "CRYPTO", "PAXOS")
    found = details(contract, "2026-05-08T12:00:00+00:00", market=market)
    assert found[26].startswith("20260507:1601-20260508:1600;20260509:CLOSED;")


def test_zones_by_their_full_names() -> None:
    """``time_zone_id = 'America/New_York'``: https://github.com/pst-group/pysystemtrade/issues/1622."""
    variants = Variants(zone_names=ZoneNames.MODERN)
    found = details(
        contract_texts("AAPL", "STK", "SMART"), "2026-04-06T12:00:00+00:00", variants=variants
    )
    assert found[25] == "America/New_York"


# --- errors ------------------------------------------------------------------------------------

NOW = "2026-03-02T15:00:00+00:00"
SERVICE = "Historical Market Data Service error message:"


def history(contract: tuple[object, ...], **other: object) -> tuple[object, ...]:
    """Return the fields of a request for bars."""
    request: dict[str, object] = {"end": "", "size": "1 hour", "duration": "1 D", "rth": 1}
    request |= {"what": "TRADES"} | other
    texts = (request["end"], request["size"], request["duration"], request["rth"], request["what"])
    return (20, 7, *contract, 0, *texts, 1, 0, "")


STOCK = contract_texts("AAPL", "STK", "SMART")


@pytest.mark.parametrize(
    ("fields", "variants", "code", "text"),
    [
        # https://github.com/wboayue/rust-ibapi/pull/245
        (
            history(STOCK, size="1 sec"),
            Variants(),
            "321",
            BAR_SIZE_REFUSED,
        ),
        # https://github.com/wrighter/ib-scripts/issues/1
        (
            history(STOCK, size="1 secs"),
            Variants(language=Language.SPANISH),
            "162",
            "Mensaje de error de los servicios de datos de mercado históricos:invalid step: 1",
        ),
        # https://github.com/pst-group/pysystemtrade/issues/1270
        (
            (9, 8, 7, *contract_texts("NOPE", "STK", "SMART"), 0, "", "", ""),
            Variants(language=Language.GERMAN),
            "200",
            "Es wurde keine Wertpapierdefinition zu der Anfrage gefunden",
        ),
        # https://github.com/erdewit/ib_insync/issues/550
        (
            history(contract_texts("T", "STK", "SMART"), end="20260302 03:00:00 US/Eastern", rth=0),
            Variants(before_first_trade=BeforeFirstTrade.NO_DATA_FROM_MIDNIGHT),
            "162",
            f"{SERVICE}HMDS query returned no data: T@SMART Trades",
        ),
        # https://github.com/nautechsystems/nautilus_trader/issues/2616
        (
            history(contract_texts("ES", "CONTFUT", "CME"), end="20260227-21:00:00"),
            Variants(),
            "10339",
            "Setting end date/time for continuous future security type is not allowed.",
        ),
        # https://github.com/QuantConnect/Lean.Brokerages.InteractiveBrokers/pull/260
        (
            history(contract_texts("BTC", "CRYPTO", "PAXOS")),
            Variants(),
            "10299",
            "Expected what to show is AGGTRADES, please use that instead of TRADES.",
        ),
    ],
    ids=["321", "162 Spanish", "200 German", "162 no data", "10339", "10299"],
)
def test_refusals(fields: tuple[object, ...], variants: Variants, code: str, text: str) -> None:
    """Code and text are the published ones, and the sixth field is empty."""
    assert response_to(*fields, now=NOW, variants=variants) == [["4", "2", "7", code, text, ""]]


# https://github.com/atreyuxtrading/atreyu-backtrader-api/issues/6, older words with xx/xxx
BAD_END = (
    "End Date/Time: The date, time, or time-zone entered is invalid. The correct format is "
    "yyyymmdd hh:mm:ss xx/xxx where yyyymmdd and xx/xxx are optional. E.g.: 20031126 15:59:00 "
    "US/Eastern  Note that "
)


def test_an_invalid_end() -> None:
    """Today's text is the older one, but for one letter more of the zone."""
    (found,) = response_to(*history(STOCK, end="2026-03-02"), now=NOW)
    assert found[3] == "10314"
    assert found[4].replace("xx/xxxx", "xx/xxx").startswith(BAD_END)


def test_a_request_is_read_as_it_was_sent() -> None:
    """The fields of ib_async's request, whose end has a zone."""
    request = decode(BOND_REQUEST.split(","))
    assert isinstance(request, HistoryRequest)
    assert (request.contract.symbol, request.contract.sec_type) == ("US912797PA95", "BOND")
    assert (request.end, request.bar_size, request.duration) == (
        "20250413 21:56:00 UTC",
        "1 day",
        "8 D",
    )
    assert (request.use_rth, request.what, request.format_date) == (True, "MIDPOINT", 1)


# --- connecting --------------------------------------------------------------------------------


def test_a_greeting_with_a_long_name() -> None:
    """The exact bytes: https://github.com/wboayue/rust-ibapi/issues/233."""
    variants = Variants(zone="GB", greeting_zone="British Summer Time")
    now = "2025-04-08T00:25:20+00:00"
    with connected(now, versions="v157..173", variants=variants) as (greeting, _):
        assert re.sub(rb"01:2\d:\d\d", b"01:25:20", greeting) == (
            b"173\x0020250408 01:25:20 British Summer Time\x00"
        )


def test_a_greeting_that_is_not_utf_8() -> None:
    """A zone's name in GB2312: https://github.com/wboayue/rust-ibapi/pull/364, not literal."""
    variants = Variants(zone="Asia/Shanghai", greeting_zone="中国标准时间")
    with connected("2026-01-07T00:00:00+00:00", variants=variants) as (greeting, client):
        assert greeting.endswith("中国标准时间".encode("gb2312") + b"\0")
        with pytest.raises(UnicodeDecodeError):
            greeting.decode()
        assert client.until(9) == ["9", "1", "1"]


def test_what_follows_the_greeting() -> None:
    """Accounts, the next id, then the farms, each with an empty sixth field.

    Sources: https://github.com/wrighter/ib-scripts/issues/9 (``DU0000000,``) and 13;
    https://github.com/wboayue/rust-ibapi, tws_interactions.yaml (``49|1|1752606307``).
    """
    variants = Variants(account_comma=True)
    with connected("2025-07-15T19:05:07+00:00", variants=variants) as (_, client):
        client.until(2158)
        assert [frame[0] for frame in client.seen[:3]] == ["15", "9", "4"]
        accounts, _, farm = client.seen[:3]
        assert re.sub("SIM[0-9]{6}", "DU0000000", accounts[2]) == "DU0000000,"
        assert len(accounts) == 3
        literal = "Market data farm connection is OK:usfuture.nj"
        assert farm[:4] == ["4", "2", "-1", "2104"]
        assert farm[4].partition(":")[0] == literal.partition(":")[0]
        assert farm[5:] == [""]
        client.send(49, 1)
        assert shape(client.until(49)) == shape(["49", "1", "1752606307"])


def test_accounts_without_a_comma() -> None:
    """``15|1|DU0000000``: https://github.com/wboayue/rust-ibapi, tws_interactions.yaml."""
    with connected("2025-07-15T19:05:07+00:00") as (_, client):
        found = [re.sub("SIM[0-9]{6}", "DU0000000", text) for text in client.until(15)]
        assert found == ["15", "1", "DU0000000"]


# https://github.com/QuantConnect/Lean.Brokerages.InteractiveBrokers/issues/169
RESTORED = (
    "Connectivity between IBKR and Trader Workstation has been restored - data maintained. "
    "All data farms are connected: eufarmnj; usfarm; ushmds; secdefnj."
)


def test_a_night() -> None:
    """The codes of https://github.com/IbcAlpha/IBC/issues/143, and the list of farms in 1102."""
    fault = "{fault: nightly_farms, seconds: 0.02, repeats: 2, flap: 0.01}"
    with connected("2024-01-10T05:00:00+00:00", faults=fault) as (_, client):
        client.send(20, 1, *AAPL, 0, "", "1 hour", "1 D", 1, "TRADES", 2, 0, "")
        client.until(1102)
        client.until(2103)
        client.until(2103)
        found = [(frame[3], frame[4]) for frame in client.seen if frame[0] == "4"][3:]
        codes = [code for code, _ in found]
        assert codes == ["2103", "2104", "1100", "1100", "1102", "2103", "2103"]
        texts = [text for _, text in found]
        assert texts[2:5] == [LOST, LOST, RESTORED]
        assert [text.rpartition(":")[2] for text in texts[5:]] == ["usfarm", "cashfarm"]


def test_a_day_of_seconds() -> None:
    """First bar 2026-09-14T15:00Z: https://github.com/wboayue/rust-ibapi/issues/835."""
    request = history(STOCK, end="20260918-00:00:00", duration="86400 S")
    (found,) = response_to(*request[:-3], 2, 0, "", now="2026-09-21T12:00:00+00:00")
    assert datetime.fromtimestamp(int(found[5]), UTC) == datetime(2026, 9, 14, 15, tzinfo=UTC)
