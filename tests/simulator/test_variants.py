"""The variants of gateways, one after the other; each default has a test of its own."""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise
from typing import Any
from zoneinfo import available_timezones

import pytest

from ktrdr_pipelines.errors import SimulatorError
from ktrdr_pipelines.simulator.market.synthetic import SyntheticMarket
from ktrdr_pipelines.simulator.protocol.languages import (
    FOREIGN,
    GERMAN_UNKNOWN_CONTRACT,
    SPANISH_SERVICE,
)
from ktrdr_pipelines.simulator.protocol.messages import ContractFields, ContractRequest
from ktrdr_pipelines.simulator.protocol.time_texts import server_text
from ktrdr_pipelines.simulator.requests.answers import Setting, answer
from ktrdr_pipelines.simulator.variants import (
    BeforeFirstTrade,
    HoursZone,
    Language,
    MarketVariants,
    Variants,
    WeekName,
    ZoneNames,
)
from tests.simulator.conftest import NOW, frames_of
from tests.simulator.rawclient import RawClient, faulty_gateway

NEW_YORK = " US/Eastern"
_LAST_TRADE, _REAL_EXPIRY, _ZONE, _TRADING, _LIQUID = 4, -5, 25, 26, 27


@dataclass
class VariantRequester:
    """Requests details and bars of a gateway with variants, without a socket."""

    new_requester: Any
    market: SyntheticMarket
    fields_of: Callable[..., ContractFields]

    def details(self, variants: Variants, now: str = NOW, **contract: Any) -> list[list[str]]:
        now_s = int(datetime.fromisoformat(now).timestamp())
        fields = self.fields_of(contract.pop("symbol"), **contract)
        setting = Setting(self.market, 178, now_s, variants=variants)
        data = answer(setting, ContractRequest(7, fields)).data
        return [frame for frame in frames_of(data) if frame[0] == "10"]

    def bars(self, variants: Variants, *arguments: str, now: str = NOW, **other: Any) -> Any:
        requester = self.new_requester(self.market, now=now)
        plain = requester.setting
        requester.setting = lambda: Setting(plain().market, 178, plain().now_s, variants=variants)
        return requester.bars(*arguments, **other)


@pytest.fixture
def requester(new_requester: Any, synthetic: SyntheticMarket, fields_of: Any) -> VariantRequester:
    """Return a requester of the market that all tests share."""
    return VariantRequester(new_requester, synthetic, fields_of)


@contextmanager
def served(market: SyntheticMarket, variants: Variants, faults: str = "") -> Iterator[RawClient]:
    """Run a gateway with variants and faults, and a client of it."""
    with faulty_gateway(market, faults, now=NOW, variants=variants) as (_, client):
        yield client


FUTURE = {"sec_type": "FUT", "exchange": "CME"}
OIL = {"symbol": "CL", "sec_type": "FUT", "exchange": "NYMEX"}


# --- the zone of the login ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("zone", "now", "contract", "last_trade", "real_expiry"),
    [
        ("", "2026-01-05T12:00:00Z", ("MES", "202603"), "20260320 08:30:00 US/Central", "20260320"),
        (
            "Europe/Zurich",
            "2026-01-05T12:00:00Z",
            ("MES", "202603"),
            "20260320 14:30:00 Europe/Zurich",
            "20260320",
        ),
        # 14:30 New York is a date further on in the east
        (
            "Asia/Shanghai",
            "2024-01-05T12:00:00Z",
            ("CL", "202402"),
            "20240123 03:30:00 Asia/Shanghai",
            "20240122",
        ),
        ("GB", "2024-01-05T12:00:00Z", ("CL", "202402"), "20240122 19:30:00 GB", "20240122"),
        ("EST5EDT", "2024-01-05T12:00:00Z", ("CL", "202402"), "20240122 14:30:00 EST5EDT", ""),
        ("Hongkong", "2024-01-05T12:00:00Z", ("ES", "202403"), "20240315 21:30:00 Hongkong", ""),
    ],
)
def test_last_trade_dates_are_in_the_zone_of_the_login(
    requester: VariantRequester,
    *,
    zone: str,
    now: str,
    contract: tuple[str, str],
    last_trade: str,
    real_expiry: str,
) -> None:
    """With a time, and possibly on another date; the real expiration date is the exchange's."""
    symbol, month = contract
    named = (OIL if symbol == "CL" else FUTURE) | {"symbol": symbol, "last_trade_date": month}
    (details,) = requester.details(Variants(zone=zone), now, **named)
    assert details[_LAST_TRADE] == last_trade
    assert details[_REAL_EXPIRY] == (real_expiry or details[_REAL_EXPIRY])
    assert details[_ZONE] in {"US/Central", "US/Eastern"}


def test_a_distant_last_trade_date_may_have_no_time(requester: VariantRequester) -> None:
    """Contracts that end later than a number of days have a plain date."""
    variants = Variants(zone="Asia/Shanghai", plain_expiry_days=100)
    texts = sorted(row[_LAST_TRADE] for row in requester.details(variants, symbol="MES", **FUTURE))
    assert texts[0] == "20240315 21:30:00 Asia/Shanghai"
    assert len(texts) > 2
    assert all(text.isdigit() and len(text) == 8 for text in texts[1:])


def test_contracts_of_a_future_are_not_ordered_by_expiry(requester: VariantRequester) -> None:
    """A live gateway sent gold as February, December, January."""
    contract = {"symbol": "GC", "sec_type": "FUT", "exchange": "COMEX"}
    rows = requester.details(Variants(), **contract)
    ends = [row[_REAL_EXPIRY] for row in rows]
    assert len(ends) == len(set(ends)) > 12
    assert ends != sorted(ends)


@pytest.mark.parametrize(
    ("zone", "start", "end"),
    [
        ("", "20250405 17:56:00 US/Eastern", "20250413 17:56:00 US/Eastern"),
        ("Europe/Zurich", "20250405 23:56:00 Europe/Zurich", "20250413 23:56:00 Europe/Zurich"),
        ("Japan", "20250406 06:56:00 Japan", "20250414 06:56:00 Japan"),
        ("MET", "20250405 23:56:00 MET", "20250413 23:56:00 MET"),
        ("GB-Eire", "20250405 22:56:00 GB-Eire", "20250413 22:56:00 GB-Eire"),
    ],
)
def test_the_stated_range_is_in_the_zone_of_the_login(
    requester: VariantRequester, zone: str, start: str, end: str
) -> None:
    """The requested end, and the start in calendar days; bars may be older."""
    variants = Variants(zone=zone)
    arguments = ("AAPL", "1 day", "8 D", "20250413-21:56:00")
    response = requester.bars(variants, *arguments, now="2025-04-13T21:56:00+00:00")
    assert (response.start, response.end) == (start, end)
    assert response.days == [
        "20250402",
        "20250403",
        "20250404",
        *(f"202504{n:02}" for n in range(7, 12)),
    ]


def test_days_of_a_stated_range_are_those_of_the_login(requester: VariantRequester) -> None:
    """Over a change of clocks in its zone the wall time stays the same."""
    arguments = ("AAPL", "1 day", "3 D", "20240402-16:00:00")
    response = requester.bars(
        Variants(zone="Europe/Zurich"), *arguments, now="2024-04-03T00:00:00+00:00"
    )
    assert (response.start, response.end) == (
        "20240330 18:00:00 Europe/Zurich",
        "20240402 18:00:00 Europe/Zurich",
    )


def test_an_end_without_a_zone_is_in_that_of_the_login(requester: VariantRequester) -> None:
    """Warning 2174 precedes the bars."""
    response = requester.bars(
        Variants(zone="Asia/Tokyo"), "AAPL", "1 day", "1 D", "20240110 01:00:00"
    )
    assert response.errors[0][0] == 2174
    assert (response.end, response.days) == ("20240110 01:00:00 Asia/Tokyo", ["20240109"])


@pytest.mark.parametrize(
    ("zone", "summer", "greeted"),
    [
        ("US/Eastern", False, "20240110 15:00:30 EST"),
        ("Europe/Zurich", False, "20240110 21:00:30 CET"),
        ("Europe/Zurich", True, "20240710 22:00:30 CEST"),
        ("Asia/Shanghai", False, "20240111 04:00:30 CST"),
        ("GB", True, "20240710 21:00:30 BST"),
        ("America/Sao_Paulo", False, "20240110 17:00:30 GMT-03:00"),
    ],
)
def test_the_greeting_is_in_the_zone_of_the_login(zone: str, *, summer: bool, greeted: str) -> None:
    """By the zone's short name, if it has one."""
    now = datetime.fromisoformat(NOW.replace("-01-", "-07-") if summer else NOW)
    assert server_text(now, zone) == greeted


def test_every_known_zone_is_accepted() -> None:
    """Old and new names are accepted, unknown ones refused."""
    names = available_timezones()
    assert {"GB", "GB-Eire", "MET", "Japan", "Hongkong", "EST", "EST5EDT", "US/Eastern"} <= names
    assert all(Variants(zone=name).login_zone == name for name in names)
    with pytest.raises(SimulatorError, match="no such zone"):
        Variants(zone="Europe/Zug")


# --- trading hours -----------------------------------------------------------------------------


def test_hours_keep_the_zone_of_the_exchange(requester: VariantRequester) -> None:
    """A login in Zurich does not change the hours of MES."""
    (row,) = requester.details(
        Variants(zone="Europe/Zurich"),
        "2025-12-23T18:00:00Z",
        symbol="MES",
        **FUTURE,
        last_trade_date="202603",
    )
    assert row[_ZONE] == "US/Central"
    assert row[_TRADING] == (
        "20251222:1700-20251223:1600;20251223:1700-20251224:1215;20251225:1700-20251226:1600;"
        "20251227:CLOSED;20251228:1700-20251229:1600"
    )
    assert row[_LIQUID] == (
        "20251223:0830-20251223:1600;20251224:0830-20251224:1215;20251225:CLOSED;"
        "20251226:0830-20251226:1600;20251227:CLOSED;20251228:CLOSED"
    )


def test_hours_may_be_in_the_zone_of_the_login(requester: VariantRequester) -> None:
    """A New York session ends on the next date in Shanghai."""
    variants = Variants(zone="Asia/Shanghai", hours_zone=HoursZone.LOGIN)
    (row,) = requester.details(variants, "2024-01-11T12:00:00Z", symbol="AAPL")
    assert row[_ZONE] == "Asia/Shanghai"
    assert row[_LIQUID] == (
        "20240110:2230-20240111:0500;20240111:2230-20240112:0500;20240112:2230-20240113:0500;"
        "20240114:CLOSED;20240115:CLOSED;20240116:2230-20240117:0500"
    )


@pytest.mark.parametrize(
    ("names", "contract", "zone"),
    [
        (ZoneNames.OLD, {"symbol": "AAPL"}, "US/Eastern"),
        (ZoneNames.MODERN, {"symbol": "AAPL"}, "America/New_York"),
        (
            ZoneNames.MODERN,
            {"symbol": "SPX", "sec_type": "IND", "exchange": "CBOE"},
            "America/Chicago",
        ),
        (ZoneNames.MODERN, {"symbol": "VOD", "currency": "GBP"}, "GB-Eire"),
    ],
)
def test_zones_have_old_names_or_new_ones(
    requester: VariantRequester, names: ZoneNames, contract: dict[str, str], zone: str
) -> None:
    """New names were seen in 2026, beside old ones."""
    (row,) = requester.details(Variants(zone_names=names), **contract)
    assert row[_ZONE] == zone


# --- bars --------------------------------------------------------------------------------------

FLAT = MarketVariants(flat_bars=frozenset({"THIN", "LATE"}))


@pytest.fixture(scope="module")
def flat_market() -> SyntheticMarket:
    """Return a market in which two stocks have flat bars."""
    return SyntheticMarket(1, FLAT)


@pytest.mark.parametrize(("size", "length_s"), [("1 min", 60), ("30 secs", 30), ("5 mins", 300)])
def test_intervals_without_a_trade_are_flat_bars(
    new_requester: Any,
    synthetic: SyntheticMarket,
    flat_market: SyntheticMarket,
    size: str,
    length_s: int,
) -> None:
    """From the first trade of a day every interval has a bar; traded ones are unchanged."""
    arguments = ("THIN", size, "1 D", "20240109-21:00:00")
    response = new_requester(flat_market).bars(*arguments, format_date=2).bars
    traded = {bar[0]: bar for bar in new_requester(synthetic).bars(*arguments, format_date=2).bars}
    starts = [int(bar[0]) for bar in response]
    assert {later - earlier for earlier, later in pairwise(starts)} == {length_s}
    assert response[0] == next(iter(traded.values()))
    assert starts[-1] + length_s == 1_704_834_000
    assert {bar[0] for bar in response} > set(traded) or size == "5 mins"
    last = ""
    for bar in response:
        if bar[0] in traded:
            assert bar == traded[bar[0]]
        else:
            price = repr(float(last))
            assert [repr(float(text)) for text in bar[1:5]] == [price] * 4
            assert (bar[5], repr(float(bar[6])), bar[7]) == ("0", price, "0")
        last = bar[4]


def test_flat_bars_begin_with_a_days_first_trade(
    new_requester: Any, flat_market: SyntheticMarket
) -> None:
    """In extended hours it may be hours after the open, and differs by day."""
    requester = new_requester(flat_market)
    arguments = ("LATE", "1 min", "10 D", "20240110-01:00:00")
    response = requester.bars(*arguments, use_rth=False)
    firsts = {text[:8]: text[9:14] for text in reversed(response.dates)}
    assert len(firsts) == 10
    assert len(set(firsts.values())) > 5
    assert all("04:00" < first <= "09:30" for first in firsts.values())


def test_flat_bars_at_the_start_have_the_last_price_before(
    new_requester: Any, flat_market: SyntheticMarket
) -> None:
    """The first flat bars have the last price before the window."""
    requester = new_requester(flat_market)
    whole = requester.bars("THIN", "1 min", "1 D", "20240109-20:00:00").bars
    part = requester.bars("THIN", "1 min", "7200 S", "20240109-20:00:00").bars
    assert part == whole[-120:]
    assert any(bar[5] == "0" for bar in part[:3])


def test_a_flat_bar_that_the_start_cuts_has_the_last_price_before(
    new_requester: Any, flat_market: SyntheticMarket
) -> None:
    """The rest of a first bar may have no trade."""
    requester, end = new_requester(flat_market), "20240109-20:00:00"
    whole = {bar[0]: bar for bar in requester.bars("THIN", "5 mins", "1 D", end).bars}
    minutes = {bar[0]: bar for bar in requester.bars("THIN", "1 min", "1 D", end).bars}
    cut = 0
    for minute in range(1, 120):
        part = requester.bars("THIN", "5 mins", f"{60 * minute} S", end).bars
        assert part[1:] == [whole[bar[0]] for bar in part[1:]]
        first = list(minutes.values())[-minute]
        if part[0][7] == "0":
            assert part[0][1:5] == first[1:5]
            cut += whole[part[0][0]][7] != "0"
    assert cut


@pytest.mark.parametrize(
    ("key", "what"), [("THIN", "MIDPOINT"), ("THIN", "BID_ASK"), ("AAPL", "TRADES")]
)
def test_only_trades_of_the_named_have_flat_bars(
    new_requester: Any,
    synthetic: SyntheticMarket,
    flat_market: SyntheticMarket,
    key: str,
    what: str,
) -> None:
    """Quotes and other instruments are unchanged."""
    arguments = {"key": key, "size": "1 min", "duration": "1 D", "end": "20240109-21:00:00"}
    one, other = (
        new_requester(each).bars(**arguments, what=what) for each in (synthetic, flat_market)
    )
    assert one.bars == other.bars


def test_days_have_no_flat_bars(new_requester: Any, synthetic: SyntheticMarket) -> None:
    """Daily bars do not depend on the variant."""
    market = SyntheticMarket(1, MarketVariants(flat_bars=frozenset({"all"})))
    one, other = (new_requester(each).bars("THIN", "1 day", "20 D") for each in (synthetic, market))
    assert one.bars == other.bars


# --- an end before a session's first trade -------------------------------------------------------


def _first_trade(new_requester: Any, market: SyntheticMarket) -> tuple[str, str]:
    """Return a day on which LATE first traded well after 04:00, and that minute."""
    response = new_requester(market).bars(
        "LATE", "1 min", "5 D", "20240110-01:00:00", use_rth=False
    )
    firsts = {text[:8]: text[9:14] for text in reversed(response.dates)}
    return next((day, first) for day, first in firsts.items() if first > "05:00")


@pytest.mark.parametrize(
    ("variant", "clock", "is_empty"),
    [
        (BeforeFirstTrade.NO_DATA, "03:00:00", False),
        (BeforeFirstTrade.NO_DATA, "04:30:00", True),
        (BeforeFirstTrade.NO_DATA_FROM_MIDNIGHT, "03:00:00", True),
        (BeforeFirstTrade.NO_DATA_FROM_MIDNIGHT, "04:30:00", True),
        (BeforeFirstTrade.PREVIOUS, "03:00:00", False),
        (BeforeFirstTrade.PREVIOUS, "04:30:00", False),
    ],
)
def test_an_end_before_a_first_trade(
    requester: VariantRequester,
    new_requester: Any,
    *,
    variant: BeforeFirstTrade,
    clock: str,
    is_empty: bool,
) -> None:
    """One day is 162 or the previous session, before the open and after it."""
    day, _ = _first_trade(new_requester, requester.market)
    arguments = ("LATE", "1 min", "1 D", f"{day} {clock}{NEW_YORK}")
    response = requester.bars(Variants(before_first_trade=variant), *arguments, use_rth=False)
    if is_empty:
        no_data = "Historical Market Data Service error message:HMDS query returned no data: "
        assert response.errors == [(162, f"{no_data}LATE@SMART Trades")]
    else:
        assert len(response.days) == 1
        assert response.days[0] < day


def test_the_day_of_an_end_may_count_as_a_session_from_midnight(
    requester: VariantRequester,
) -> None:
    """Two days then hold one session with bars; weekends do not change."""
    variants = Variants(before_first_trade=BeforeFirstTrade.NO_DATA_FROM_MIDNIGHT)
    two = requester.bars(variants, "AAPL", "1 hour", "2 D", "20240109 08:00:00" + NEW_YORK)
    assert two.days == ["20240108"]
    sunday = requester.bars(variants, "AAPL", "1 hour", "1 D", "20240107 12:00:00" + NEW_YORK)
    assert sunday.days == ["20240105"]
    evening = {
        "contract": requester.fields_of(
            "ES", sec_type="FUT", exchange="CME", last_trade_date="202403"
        )
    }
    pause = requester.bars(
        variants, "ES", "1 hour", "1 D", "20240109 17:30:00" + NEW_YORK, use_rth=False, **evening
    )
    assert pause.days[-1] == "20240109"


# --- crypto ------------------------------------------------------------------------------------


@pytest.fixture
def in_sessions(new_requester: Any, fields_of: Any) -> VariantRequester:
    """Return a requester of a market in which crypto has sessions."""
    return VariantRequester(
        new_requester, SyntheticMarket(1, MarketVariants(crypto_zone="US/Eastern")), fields_of
    )


BTC = {"sec_type": "CRYPTO", "exchange": "PAXOS"}


def test_crypto_trades_in_sessions_of_its_own(in_sessions: VariantRequester) -> None:
    """From 16:01 of the date before to 16:00; Saturday has no session."""
    (row,) = in_sessions.details(Variants(), "2026-05-08T12:00:00Z", symbol="BTC", **BTC)
    assert row[_ZONE] == "US/Eastern"
    assert row[_TRADING].startswith(
        "20260507:1601-20260508:1600;20260509:CLOSED;20260510:1601-20260511:1600;"
    )
    assert row[_TRADING] == row[_LIQUID]


def test_crypto_trades_round_the_clock_by_default(requester: VariantRequester) -> None:
    """Without a zone of its own crypto trades in UTC days."""
    (row,) = requester.details(Variants(), "2026-05-08T12:00:00Z", symbol="BTC", **BTC)
    assert row[_ZONE] == "UTC"
    assert row[_TRADING].startswith("20260508:0000-20260509:0000;20260509:0000-20260510:0000;")


def test_days_of_crypto_follow_its_sessions(in_sessions: VariantRequester) -> None:
    """They have the date of their close; hours begin at 16:01, then on the hour."""
    contract = in_sessions.fields_of("BTC", **BTC)
    arguments: dict[str, Any] = {"contract": contract, "what": "AGGTRADES", "use_rth": False}
    end = "20240109 16:00:00" + NEW_YORK
    days = in_sessions.bars(Variants(), "BTC", "1 day", "3 D", end, **arguments)
    assert days.days == ["20240105", "20240108", "20240109"]
    hours = in_sessions.bars(Variants(), "BTC", "1 hour", "1 D", end, **arguments)
    assert hours.dates[:2] == ["20240108 16:01:00 US/Eastern", "20240108 17:00:00 US/Eastern"]
    assert hours.dates[-1] == "20240109 15:00:00 US/Eastern"
    assert float(days.bars[-1][5]) == pytest.approx(sum(float(bar[5]) for bar in hours.bars))


def test_trades_of_crypto_are_refused(in_sessions: VariantRequester) -> None:
    """The text names the supported whatToShow."""
    contract = in_sessions.fields_of("BTC", **BTC)
    response = in_sessions.bars(
        Variants(), "BTC", "1 hour", "1 D", contract=contract, what="TRADES"
    )
    expected = "Expected what to show is AGGTRADES, please use that instead of TRADES."
    assert response.errors == [(10299, expected)]


# --- texts -------------------------------------------------------------------------------------


def test_errors_are_in_the_language_of_the_gateway(synthetic: SyntheticMarket) -> None:
    """Spanish before an English suffix, German for 200; other texts stay English."""
    with served(
        synthetic, Variants(language=Language.SPANISH), "{fault: pacing, nth: 2}"
    ) as client:
        client.bars(1, size="1 secs", duration="1 D", end="20240110-14:00:00")
        assert client.until(162)[4] == SPANISH_SERVICE + "invalid step: 1"
        client.bars(2)
        assert (
            client.until(162, 2)[4] == SPANISH_SERVICE + "Historical data request pacing violation"
        )
        client.cancel(7)
        assert client.until(366)[4].startswith("No historical data query found")
    with served(synthetic, Variants(language=Language.GERMAN)) as client:
        client.send(
            9, 8, 1, 0, "NOPE", "STK", "", "0.0", "", "", "SMART", "", "USD", "", "", 0, "", "", ""
        )
        assert client.until(200)[4] == GERMAN_UNKNOWN_CONTRACT
        client.bars(2, size="1 secs", duration="1 D")
        assert client.until(162)[4].endswith("error message:invalid step: 1")


def test_a_foreign_gateway_uses_no_known_text(synthetic: SyntheticMarket) -> None:
    """Responses, refusals, notices and faults have codes only."""
    variants = Variants(language=Language.FOREIGN)
    lost = "{fault: link_lost, nth: 4, seconds: 0.01}"
    faults = f"{{fault: no_data, nth: 1}}, {{fault: newest_missing, nth: 2}}, {lost}"
    with served(synthetic, variants, faults) as client:
        client.bars(1)
        client.until(162)
        client.bars(2)
        client.until(17)
        client.bars(3, size="1 sec")
        client.until(321)
        client.cancel(9)
        client.bars(4)
        client.until(1102)
        errors = {frame[3]: frame[4] for frame in client.seen if frame[0] == "4"}
        assert set(errors) == {"2104", "2106", "2158", "162", "2188", "321", "366", "1100", "1102"}
        assert set(errors.values()) == {FOREIGN}


@pytest.mark.parametrize(
    ("name", "accepted"),
    [
        (WeekName.BOTH, {"1 week", "1W"}),
        (WeekName.WORD, {"1 week"}),
        (WeekName.LETTER, {"1W"}),
        (WeekName.NONE, set[str]()),
    ],
)
def test_names_of_weeks(requester: VariantRequester, name: WeekName, accepted: set[str]) -> None:
    """An unaccepted name is refused with the list; months have both names."""
    variants = Variants(week_name=name)
    for size in ("1 week", "1W"):
        response = requester.bars(variants, "AAPL", size, "1 M")
        if size in accepted:
            assert len(response.bars) > 3
        else:
            assert response.errors[0][0] == 321
            assert response.errors[0][1].endswith("8 hours, 1 day, 1W, 1M")
    for size in ("1 month", "1M"):
        assert len(requester.bars(variants, "AAPL", size, "6 M").bars) == 7


# --- the greeting ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("named", "raw"),
    [
        ("British Summer Time", b"178\x0020240110 15:00:30 British Summer Time\x00"),
        (
            "中国标准时间",
            b"178\x0020240110 15:00:30 \xd6\xd0\xb9\xfa\xb1\xea\xd7\xbc\xca\xb1\xbc\xe4\x00",
        ),
    ],
)
def test_long_names_of_zones_in_the_greeting(
    synthetic: SyntheticMarket, named: str, raw: bytes
) -> None:
    """Chinese names are not UTF-8."""
    with served(synthetic, Variants(greeting_zone=named)) as client:
        response = client.payload() or b""
        clock = slice(13, 21)
        assert re.fullmatch(rb"15:00:[0-9]{2}", response[clock])
        assert response.replace(response[clock], b"15:00:30") == raw


def test_a_list_of_accounts_may_end_with_a_comma(synthetic: SyntheticMarket) -> None:
    """At the start and on request; other messages name the account without it."""
    with served(synthetic, Variants(account_comma=True)) as client:
        assert client.until(15) == ["15", "1", "SIM000001,"]
        client.until(2158)
        client.send(17, 1)
        assert client.until(15) == ["15", "1", "SIM000001,"]
        client.send(6, 2, 1, "")
        assert client.until(54) == ["54", "1", "SIM000001"]
