"""One entry of the universe: what its fields mean, and what is derived without them."""

from dataclasses import replace
from datetime import date

import pytest

from ktrdr_pipelines.domain.calendars.registry import calendar_keys, is_calendar
from ktrdr_pipelines.domain.instruments import Backfill, Instrument, SecType, WhatToShow
from ktrdr_pipelines.domain.timeframes import Timeframe
from ktrdr_pipelines.domain.universe.ib_exchanges import (
    FUTURES_EXCHANGES,
    INDEX_EXCHANGES,
    STOCK_EXCHANGES,
)
from ktrdr_pipelines.domain.universe.universe import parse_universe
from ktrdr_pipelines.errors import UniverseError
from tests.support.universes import AAPL, EURUSD, one


def test_a_stock_needs_only_its_symbol() -> None:
    """The rest is derived: trades in regular hours, routed by SMART."""
    assert one("AAPL: {}") == AAPL
    assert one("AAPL:") == AAPL


def test_six_letters_of_two_currencies_are_a_pair() -> None:
    """It is no stock: midpoints in all hours at IDEALPRO."""
    assert one("EURUSD: {}") == EURUSD


@pytest.mark.parametrize(
    ("key", "symbol", "what", "use_rth", "calendar"),
    [
        ("AAPL.ETH", "AAPL", "TRADES", False, "XNYS.ETH"),
        ("AAPL.BID", "AAPL", "BID", True, "XNYS.RTH"),
        ("AAPL.ASK", "AAPL", "ASK", True, "XNYS.RTH"),
        ("AAPL.MID", "AAPL", "MIDPOINT", True, "XNYS.RTH"),
        ("AAPL.ETH.BID", "AAPL", "BID", False, "XNYS.ETH"),
        ("EURUSD.BID", "EUR", "BID", False, "FX"),
        ("EURUSD.MID", "EUR", "MIDPOINT", False, "FX"),
        ("USDJPY", "USD", "MIDPOINT", False, "FX"),
        ("aapl.eth", "AAPL", "TRADES", False, "XNYS.ETH"),
        ("BRK.B", "BRK B", "TRADES", True, "XNYS.RTH"),
        ("GOOGL", "GOOGL", "TRADES", True, "XNYS.RTH"),
        ("ETH", "ETH", "TRADES", True, "XNYS.RTH"),
    ],
)
def test_a_key_alone_determines_an_instrument(
    key: str, symbol: str, what: str, use_rth: bool, calendar: str
) -> None:
    """Suffixes set hours and prices; a dot in a stock's symbol is a space for IB."""
    found = one(f"{key}: {{}}")
    assert (found.symbol, found.ib_symbol, found.what_to_show) == (key, symbol, what)
    assert (found.use_rth, found.calendar) == (use_rth, calendar)


def test_every_field_can_be_set() -> None:
    """Each field of an entry is one of the instrument."""
    found = one(
        "X: {sec_type: STK, symbol: BRK B, exchange: NYSE, primary_exchange: NYSE, currency: USD,"
        " con_id: 72063691, what_to_show: BID, use_rth: false, calendar: XNYS.ETH,"
        " timeframes: [1w, 1m], start: 1996-05-09, backfill: manual}"
    )
    assert found == Instrument(
        symbol="X",
        ib_symbol="BRK B",
        sec_type=SecType.STK,
        exchange="NYSE",
        currency="USD",
        what_to_show=WhatToShow.BID,
        use_rth=False,
        calendar="XNYS.ETH",
        timeframes=(Timeframe.W1, Timeframe.M1),
        start=date(1996, 5, 9),
        backfill=Backfill.MANUAL,
        primary_exchange="NYSE",
        contract_id=72_063_691,
    )


def test_a_pair_may_have_any_name() -> None:
    """With symbol and currency set the key is free, and a stock may look like a pair."""
    euro = one("EURO: {sec_type: CASH, symbol: EUR, currency: USD}")
    assert (euro.ib_symbol, euro.currency, euro.calendar) == ("EUR", "USD", "FX")
    stock = one("EURUSD: {sec_type: STK}")
    assert (stock.ib_symbol, stock.calendar) == ("EURUSD", "XNYS.RTH")


def test_a_future_has_a_last_trade_date() -> None:
    """It trades in all hours, and has ended after that day, whatever the hour of its end."""
    found = one(
        'ESZ23: {sec_type: FUT, symbol: ES, exchange: CME, last_trade_date: "20231215",'
        " multiplier: 50, local_symbol: ESZ3, trading_class: ES}"
    )
    assert found == replace(
        AAPL,
        symbol="ESZ23",
        ib_symbol="ES",
        sec_type=SecType.FUT,
        exchange="CME",
        use_rth=False,
        calendar="GLOBEX.EQUITY",
        end=date(2023, 12, 16),
        last_trade_date=date(2023, 12, 15),
        multiplier="50",
        local_symbol="ESZ3",
        trading_class="ES",
    )
    universe = parse_universe(
        "symbols:\n  F: {sec_type: FUT, symbol: CL, exchange: NYMEX, last_trade_date: 20250319}",
        "u.yaml",
    )
    described = universe.describe(universe.instrument("F"))
    assert described["last_trade_date"] == "20250319 (set)"
    assert described["end"] == "2025-03-20 (derived)"


@pytest.mark.parametrize(
    ("entry", "currency", "calendar"),
    [
        ("VOD: {primary_exchange: LSE}", "GBP", "XLON.RTH"),
        ("SAP: {exchange: IBIS}", "EUR", "XETR.RTH"),
        ("AIR: {primary_exchange: SBF}", "EUR", "XPAR.RTH"),
        ("7203: {exchange: TSEJ}", "JPY", "XTKS.RTH"),
        ("700: {exchange: SEHK}", "HKD", "XHKG.RTH"),
        ("BHP: {exchange: ASX}", "AUD", "XASX.RTH"),
        ("VODU: {symbol: VOD, exchange: LSE, currency: USD}", "USD", "XLON.RTH"),
        ("RY: {currency: CAD, primary_exchange: TSE}", "CAD", "XTSE.RTH"),
        ("X: {currency: EUR, calendar: XMIL.RTH}", "EUR", "XMIL.RTH"),
        ("V.ETH: {primary_exchange: LSE, calendar: GATEWAY}", "GBP", "GATEWAY:Europe/London"),
        ("V: {exchange: FOO, currency: SAR, calendar: 'GATEWAY:UTC'}", "SAR", "GATEWAY:UTC"),
        ("AAPL: {calendar: GATEWAY}", "USD", "GATEWAY:America/New_York"),
        ("SPX: {sec_type: IND, exchange: CBOE}", "USD", "XNYS.RTH"),
        ("DAX: {sec_type: IND, exchange: EUREX}", "EUR", "XETR.RTH"),
        ("N225: {sec_type: IND, exchange: OSE.JPN}", "JPY", "XTKS.RTH"),
        ("BTC: {sec_type: CRYPTO}", "USD", "CRYPTO"),
        ("D: {sec_type: FUT, symbol: DAX, exchange: EUREX, last_trade_date: 20240315}", "EUR", "E"),
        ("SMI: {sec_type: IND, exchange: SOFFEX}", "CHF", "XSWX.RTH"),
        ("OMXH25: {sec_type: IND, exchange: HEX}", "EUR", "XHEL.RTH"),
        (
            "B: {sec_type: FUT, symbol: H, exchange: HKFE, last_trade_date: 20240628, calendar: G}",
            "HKD",
            "GATEWAY:Asia/Hong_Kong@17:00",
        ),
        (
            "B: {sec_type: FUT, symbol: X, exchange: CME, last_trade_date: 20240628, calendar: G}",
            "USD",
            "GATEWAY:America/Chicago@17:00",
        ),
        (
            "B: {sec_type: FUT, symbol: X, exchange: CME, last_trade_date: 20240628, calendar: F}",
            "USD",
            "GLOBEX.FX",
        ),
    ],
)
def test_exchange_codes_determine_currency_and_calendar(
    entry: str, currency: str, calendar: str
) -> None:
    """Other hours are those that the gateway states, or a calendar that is set."""
    text = entry.replace(": G}", ": GATEWAY}").replace(": F}", ": GLOBEX.FX}")
    found = one(text)
    expected = "EUREX.INDEX" if calendar == "E" else calendar
    assert (found.currency, found.calendar) == (currency, expected)
    assert is_calendar(found.calendar)


def test_every_exchange_of_the_tables_has_a_calendar() -> None:
    """No code has a calendar that no library knows."""
    markets = {*STOCK_EXCHANGES.values(), *INDEX_EXCHANGES.values()}
    assert {market.regular for market in markets} <= set(calendar_keys())
    assert all(is_calendar(days) for _, days in FUTURES_EXCHANGES.values())


@pytest.mark.parametrize(
    ("entry", "symbol"),
    [
        ("BP.: {primary_exchange: LSE}", "BP."),
        ("ERIC.B: {exchange: SFB}", "ERIC.B"),
        ("RCI.B: {primary_exchange: TSE, currency: CAD}", "RCI.B"),
        ("ERIC.B: {exchange: SFB, symbol: ERIC B}", "ERIC B"),
        ("BRK.B: {primary_exchange: NYSE}", "BRK B"),
        ("BF.B: {exchange: NYSE}", "BF B"),
        ("HM.B.MID: {currency: SEK, calendar: XSTO.RTH}", "HM.B"),
    ],
)
def test_a_dot_is_a_space_for_us_shares_alone(entry: str, symbol: str) -> None:
    """IB keeps the dot of symbols of other exchanges; `symbol` decides where it is given."""
    assert one(entry).ib_symbol == symbol


@pytest.mark.parametrize(
    ("entry", "end", "has_ended"),
    [
        ("A: {delisted: 2024-03-01}", date(2024, 3, 2), False),
        ("A: {end: 2024-03-02}", date(2024, 3, 2), False),
        ("A: {ended: true}", None, True),
        ("A: {ended: false}", None, False),
    ],
)
def test_the_end_of_an_instrument_is_its_last_session_or_the_day_after(
    entry: str, end: date | None, has_ended: bool
) -> None:
    """`delisted` is the last session, `end` the first date without one."""
    found = one(entry)
    assert (found.end, found.has_ended) == (end, has_ended)


def test_two_ends_of_an_instrument_contradict() -> None:
    """The error names both, and what each of them means."""
    with pytest.raises(UniverseError, match=r"delisted: is given beside end.*its last session"):
        one("A: {delisted: 2024-03-01, end: 2024-03-01}")


def test_a_coin_has_aggregated_trades() -> None:
    """It trades at PAXOS, round the clock."""
    for key in ("BTC", "BTCUSD"):
        found = one(f"{key}: {{sec_type: CRYPTO}}")
        assert (found.ib_symbol, found.exchange, found.what_to_show, found.use_rth) == (
            "BTC",
            "PAXOS",
            "AGGTRADES",
            False,
        )


def test_the_end_of_a_stock_holds_for_symbols_with_its_suffixes() -> None:
    """`end` is the first session date without the instrument."""
    text = "symbols:\n  BBBY: {end: 2023-05-03}\n  BBBY.ETH: {}\n"
    universe = parse_universe(text, "u.yaml")
    assert {each.end for each in universe.instruments.values()} == {date(2023, 5, 3)}


def test_defaults_apply_to_fields_that_are_not_set() -> None:
    """An entry's own fields come first, and currencies have no regular hours."""
    defaults = "{use_rth: false, timeframes: [1d], start: '2015-06-01', backfill: manual}"
    apple = one("AAPL: {backfill: auto}", defaults)
    assert (apple.use_rth, apple.calendar, apple.timeframes) == (False, "XNYS.ETH", ("1d",))
    assert (apple.start, apple.backfill) == (date(2015, 6, 1), Backfill.AUTO)
    assert one("EURUSD: {}", "{use_rth: true}").use_rth is False
    assert one("AAPL.ETH: {}", "{use_rth: true}").use_rth is False


def test_a_suffix_takes_over_the_contract_of_its_base() -> None:
    """Fields of the contract are taken over, those of hours and bars are not."""
    text = "symbols:\n  X.BID: {}\n  X: {symbol: BRK B, con_id: 5, use_rth: no, timeframes: [1w]}\n"
    found = parse_universe(text, "u.yaml").instrument("X.BID")
    assert (found.ib_symbol, found.contract_id) == ("BRK B", 5)
    assert (found.use_rth, found.timeframes) == (True, AAPL.timeframes)


@pytest.mark.parametrize(
    "key",
    ["ON", "NO", "y", "0700", "1E5", "2024-01-01", "null", "true", "0x10", "1_000", "1.50"],
)
def test_a_key_stays_as_it_was_written(key: str) -> None:
    """No symbol becomes a boolean, a number, a date or null."""
    found = one(f"{key}: {{}}")
    assert found.symbol == key
    assert one(f"X: {{symbol: '{key}'}}").ib_symbol == key
