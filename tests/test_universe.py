from dataclasses import replace
from datetime import date
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ktrdr_pipelines.core.calendars import calendar_keys, is_calendar
from ktrdr_pipelines.core.instruments import Backfill, Instrument, SecType, WhatToShow
from ktrdr_pipelines.core.timeframes import Timeframe
from ktrdr_pipelines.errors import DiskError, UniverseError, UnknownSymbolError
from ktrdr_pipelines.universe import Universe, UniverseFile, Windows, load_universe, parse_universe
from ktrdr_pipelines.universe_markets import INDEX_EXCHANGES, STOCK_EXCHANGES

EXAMPLE = Path(__file__).parents[1] / "data" / "universe.example.yaml"
GOOD = "symbols:\n  AAPL: {}\n"
AAPL = Instrument(
    symbol="AAPL",
    ib_symbol="AAPL",
    sec_type=SecType.STK,
    exchange="SMART",
    currency="USD",
    what_to_show=WhatToShow.TRADES,
    use_rth=True,
    calendar="XNYS.RTH",
    timeframes=(Timeframe.M1, Timeframe.H1, Timeframe.D1),
    start=date(2020, 1, 1),
)
EURUSD = Instrument(
    symbol="EURUSD",
    ib_symbol="EUR",
    sec_type=SecType.CASH,
    exchange="IDEALPRO",
    currency="USD",
    what_to_show=WhatToShow.MIDPOINT,
    use_rth=False,
    calendar="FX",
    timeframes=(Timeframe.M1, Timeframe.H1, Timeframe.D1),
    start=date(2020, 1, 1),
)


def one(entry: str, defaults: str = "{}") -> Instrument:
    """Read a universe of one entry and give its instrument."""
    text = f"defaults: {defaults}\nsymbols:\n  {entry}\n"
    (found,) = parse_universe(text, "u.yaml").instruments.values()
    return found


def problem(text: str) -> str:
    """Give the text of the error that a universe makes."""
    with pytest.raises(UniverseError) as caught:
        parse_universe(text, "u.yaml")
    return str(caught.value)


def file(tmp_path: Path, text: str = GOOD) -> UniverseFile:
    """Make a universe file whose copy lies in a folder beside it."""
    (tmp_path / "universe.yaml").write_text(text)
    return UniverseFile(tmp_path / "universe.yaml", tmp_path / "state" / "universe.good.yaml")


def test_a_stock_needs_only_its_name() -> None:
    """What is not said is derived: trades in regular hours, routed by SMART."""
    assert one("AAPL: {}") == AAPL
    assert one("AAPL:") == AAPL


def test_six_letters_of_two_currencies_are_a_pair() -> None:
    """It is no stock: midpoints around the clock at IDEALPRO."""
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
def test_a_key_alone_says_what_is_meant(
    key: str, symbol: str, what: str, use_rth: bool, calendar: str
) -> None:
    """Suffixes fix hours and prices; a dot in a stock's name is IB's space."""
    found = one(f"{key}: {{}}")
    assert (found.symbol, found.ib_symbol, found.what_to_show) == (key, symbol, what)
    assert (found.use_rth, found.calendar) == (use_rth, calendar)


def test_everything_can_be_said() -> None:
    """Every field of an entry reaches its place."""
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
    """Where symbol and currency are said the key is free, and a stock may look like a pair."""
    euro = one("EURO: {sec_type: CASH, symbol: EUR, currency: USD}")
    assert (euro.ib_symbol, euro.currency, euro.calendar) == ("EUR", "USD", "FX")
    stock = one("EURUSD: {sec_type: STK}")
    assert (stock.ib_symbol, stock.calendar) == ("EURUSD", "XNYS.RTH")


def test_a_future_is_known_by_its_last_trade_date() -> None:
    """It trades all hours, and has ended after its last day, whatever the hour of its end."""
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
    told = universe.describe(universe.instrument("F"))
    assert told["last_trade_date"] == "20250319 (said)"
    assert told["end"] == "2025-03-20 (derived)"


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
def test_exchange_codes_say_currency_and_sessions(entry: str, currency: str, calendar: str) -> None:
    """What is not said follows from the exchange, and only the gateway knows other hours."""
    said = entry.replace(": G}", ": GATEWAY}").replace(": F}", ": GLOBEX.FX}")
    found = one(said)
    assert (found.currency, found.calendar) == (currency, calendar)
    assert is_calendar(found.calendar)


def test_every_exchange_of_the_tables_has_a_calendar() -> None:
    """No code leads to a market that no library knows."""
    markets = {*STOCK_EXCHANGES.values(), *INDEX_EXCHANGES.values()}
    assert {market.regular for market in markets} <= set(calendar_keys())


def test_a_coin_has_its_own_prices() -> None:
    """Crypto is aggregated trades at PAXOS, round the clock."""
    for key in ("BTC", "BTCUSD"):
        found = one(f"{key}: {{sec_type: CRYPTO}}")
        assert (found.ib_symbol, found.exchange, found.what_to_show, found.use_rth) == (
            "BTC",
            "PAXOS",
            "AGGTRADES",
            False,
        )


def test_a_person_says_that_a_stock_has_ended() -> None:
    """`end` is the first session date without it, and counts for the symbols beside it too."""
    text = "symbols:\n  BBBY: {end: 2023-05-03}\n  BBBY.ETH: {}\n"
    universe = parse_universe(text, "u.yaml")
    assert {each.end for each in universe.instruments.values()} == {date(2023, 5, 3)}


def test_defaults_hold_for_what_is_not_said() -> None:
    """An entry's own word comes first, and regular hours are no matter of currencies."""
    defaults = "{use_rth: false, timeframes: [1d], start: '2015-06-01', backfill: manual}"
    apple = one("AAPL: {backfill: auto}", defaults)
    assert (apple.use_rth, apple.calendar, apple.timeframes) == (False, "XNYS.ETH", ("1d",))
    assert (apple.start, apple.backfill) == (date(2015, 6, 1), Backfill.AUTO)
    assert one("EURUSD: {}", "{use_rth: true}").use_rth is False
    assert one("AAPL.ETH: {}", "{use_rth: true}").use_rth is False


def test_a_suffix_takes_over_the_contract_of_its_base() -> None:
    """What the base says of its contract holds, what it says of hours and bars does not."""
    text = "symbols:\n  X.BID: {}\n  X: {symbol: BRK B, con_id: 5, use_rth: no, timeframes: [1w]}\n"
    found = parse_universe(text, "u.yaml").instrument("X.BID")
    assert (found.ib_symbol, found.contract_id) == ("BRK B", 5)
    assert (found.use_rth, found.timeframes) == (True, AAPL.timeframes)


@pytest.mark.parametrize(
    "key",
    ["ON", "NO", "y", "0700", "1E5", "2024-01-01", "null", "true", "0x10", "1_000", "1.50"],
)
def test_a_key_stays_as_it_was_written(key: str) -> None:
    """No symbol turns into a truth, a number, a date or nothing."""
    found = one(f"{key}: {{}}")
    assert found.symbol == key
    assert one(f"X: {{symbol: '{key}'}}").ib_symbol == key


def test_symbols_come_in_the_order_of_the_file() -> None:
    """Ids and pages follow what a person wrote, not the alphabet."""
    text = "symbols:\n  MSFT: {timeframes: [1d, 1m]}\n  AAPL: {timeframes: [1m]}\n"
    universe = parse_universe(text, "u.yaml")
    assert list(universe.instruments) == ["MSFT", "AAPL"]
    assert [str(series) for series in universe.series()] == ["MSFT 1d", "MSFT 1m", "AAPL 1m"]
    assert [str(series) for series in universe.series(Timeframe.M1)] == ["MSFT 1m", "AAPL 1m"]
    assert universe.series(Timeframe.W1) == ()


def test_windows_begin_in_2020_and_1980_unless_said() -> None:
    """A month for minutes and a year for all others."""
    assert parse_universe(GOOD, "u").windows == Windows(date(2020, 1, 1), 1980)
    said = parse_universe(GOOD + "windows: {1m: 2015-07, yearly: 1999}", "u")
    assert said.windows == Windows(date(2015, 7, 1), 1999)
    half = parse_universe(GOOD + "windows: {1m: '2015-07'}", "u")
    assert half.windows == Windows(date(2015, 7, 1), 1980)


def test_an_unknown_symbol_comes_with_the_nearest_and_the_file() -> None:
    """A person sees what was meant, and where to add what is not there."""
    universe = parse_universe("symbols: {AAPL: , AAPL.ETH: , MSFT: }", "my/universe.yaml")
    assert universe.instrument("AAPL") == AAPL
    for symbol, near in (("APPL", "AAPL"), ("aapl", "AAPL, AAPL.ETH")):
        with pytest.raises(UnknownSymbolError) as caught:
            universe.instrument(symbol)
        assert str(caught.value) == (
            f"symbol {symbol!r}: not in the universe. Did you mean {near}? "
            "Add it under `symbols:` in my/universe.yaml"
        )
    with pytest.raises(UnknownSymbolError, match=r"universe\. Add it"):
        universe.instrument("ZZZZZZ")


def test_describing_shows_each_field_and_its_origin() -> None:
    """Said, by default, as the base or derived: nothing is left to guess."""
    text = (
        "defaults: {start: 2021-01-01}\n"
        "symbols:\n  AAPL: {primary_exchange: NASDAQ}\n  AAPL.ETH: {timeframes: [1m, 5m]}\n"
    )
    universe = parse_universe(text, "u.yaml")
    assert universe.describe(universe.instrument("AAPL.ETH")) == {
        "sec_type": "STK (derived)",
        "symbol": "AAPL (derived)",
        "exchange": "SMART (derived)",
        "primary_exchange": "NASDAQ (as AAPL)",
        "currency": "USD (derived)",
        "con_id": "none (derived)",
        "what_to_show": "TRADES (derived)",
        "use_rth": "false (derived)",
        "calendar": "XNYS.ETH (derived)",
        "timeframes": "1m, 5m (said)",
        "start": "2021-01-01 (defaults)",
        "end": "none (derived)",
        "backfill": "auto (derived)",
    }
    assert Universe({"AAPL": AAPL}).describe(AAPL)["exchange"] == "SMART (said)"


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("", ["line 1: is empty", "symbols:"]),
        ("# nothing\n", ["is empty"]),
        ("~", ["names no symbol"]),
        ("[]", ["line 1: is an empty list", "must be a mapping"]),
        ("just words", ["is 'just words'", "must be a mapping"]),
        ("defaults: {}\n", ["names no symbol"]),
        ("symbols:\n", ["line 1, symbols: names no symbol"]),
        ("symbols: [AAPL, SPY]", ["symbols: is a list", "must be a mapping"]),
        ("symbols:\n\tAAPL: {}", ["line 2: is not YAML", "Replace the tab by spaces"]),
        ("symbols: {AAPL: {}", ["line 1: is not YAML", "brackets"]),
        ("symbols:\n  A: *b\n", ["line 2: is not YAML", "undefined alias"]),
        ("a: 1\n---\nb: 2\n", ["is not YAML", "another document"]),
        ("symbols:\n  A: '\x07'\n", ["line 2: holds a character that YAML does not allow"]),
        ("[" * 5_000, ["nested too deeply"]),
        ("symbol: {}\n", ["line 1, symbol: is not a known key", "Did you mean symbols?"]),
        ("? [a]\n: 1\n", ["line 1: holds a list as a key"]),
        (
            "symbols:\n  AAPL: {}\n  SPY: {}\n  AAPL: {}\n",
            ["line 4, symbols > AAPL: is there twice", "line 2"],
        ),
        (
            "symbols:\n  AAPL: {use_rth: yes, use_rth: no}\n",
            ["line 2, symbols > AAPL > use_rth: is there twice"],
        ),
        ("symbols: {A: }\nsymbols: {B: }\n", ["line 2, symbols: is there twice"]),
        (
            "symbols:\n  AAPL: {}\n  aapl: {}\n",
            ["line 3, symbols > aapl: differs from AAPL by case only"],
        ),
        ("symbols:\n  AAPL: 5\n", ["line 2, symbols > AAPL: is '5'", "must be a mapping"]),
        ("windows: {1h: 2020}\nsymbols: {A: }", ["windows > 1h: is not a known key", "1m, yearly"]),
        ("windows: {1m: 2020-13}\nsymbols: {A: }", ["1m: is '2020-13'", "a month such as 2020-01"]),
        ("windows: {1m: 2020}\nsymbols: {A: }", ["a month such as 2020-01"]),
        ("windows: {1m: 1960-01}\nsymbols: {A: }", ["Years go from 1970 to 2049"]),
        ("windows: {yearly: 80}\nsymbols: {A: }", ["yearly: is '80'", "a year such as 1980"]),
        ("windows: {yearly: 2050}\nsymbols: {A: }", ["Years go from 1970 to 2049"]),
        ("defaults: {symbol: A}\nsymbols: {A: }", ["defaults > symbol: is not a known key"]),
    ],
)
def test_a_malformed_file_is_told_by_line_and_key(text: str, parts: list[str]) -> None:
    """Whatever is wrong with the file as a whole, the text says where and what would do."""
    found = problem(text)
    assert found.startswith("u.yaml, line ")
    for part in parts:
        assert part in found


@pytest.mark.parametrize(
    "key", [".A", "-A", "A B", "A/B", "A:B", "Ä", "A" * 21, "''", "A|B", "<<", "..", "A\\nB"]
)
def test_a_key_that_is_no_symbol_is_refused(key: str) -> None:
    """Symbols become folders and partition keys; the text has the rule."""
    quoted = key if key == "''" else f'"{key}"'
    found = problem(f"symbols:\n  {quoted}: {{}}\n")
    assert "line 2" in found
    assert "is not a symbol" in found
    assert "at most 20 letters" in found


@pytest.mark.parametrize(
    ("entry", "parts"),
    [
        ("A: {use_rht: true}", ["A > use_rht: is not a known key", "Did you mean use_rth?"]),
        ("A: {sec_type: OPT}", ["'OPT', which this release", "STK, CASH, FUT, IND, CRYPTO"]),
        ("A: {sec_type: stk}", ["'stk'", "STK, CASH"]),
        ("A: {sec_type: CONTFUT}", ["CONTFUT, which is not kept", "single contracts"]),
        ("A: {what_to_show: BID_ASK}", ["BID_ASK, which is not kept", "one symbol with BID"]),
        ("A: {what_to_show: ADJUSTED_LAST}", ["is not kept", "TRADES, which is adjusted"]),
        ("A: {sec_type: FUT}", ["FUT without `symbol`", "symbol: ES"]),
        ("A: {sec_type: FUT, symbol: ES}", ["without `exchange`", "exchange: CME"]),
        ("A: {sec_type: IND}", ["is IND without `exchange`"]),
        (
            "A: {sec_type: FUT, symbol: ES, exchange: CME}",
            ["FUT without `last_trade_date`", '"20231215"'],
        ),
        (
            "A: {sec_type: FUT, symbol: ES, exchange: CME, last_trade_date: 202312}",
            ["last_trade_date: is '202312'"],
        ),
        (
            "A: {sec_type: FUT, symbol: ES, exchange: CME, last_trade_date: 20231315}",
            ["last_trade_date: is '20231315'", "a day"],
        ),
        (
            "A: {sec_type: FUT, symbol: ES, exchange: CME, last_trade_date: 20191220}",
            ["had ended on 2019-12-21", "its start is 2020-01-01", "earlier `start`"],
        ),
        ("A: {end: 2019-01-01}", ["A > end: means that it had ended on 2019-01-01"]),
        (
            "A: {sec_type: FUT, use_rth: on, symbol: E, exchange: CME, last_trade_date: 20231215}",
            ["sessions are not known", "`use_rth: false`", "calendar: GATEWAY"],
        ),
        (
            "A: {sec_type: FUT, symbol: BRR, exchange: CME, last_trade_date: 20231215}",
            ["sessions are not known", "GLOBEX.EQUITY", "calendar: GATEWAY"],
        ),
        (
            "A: {sec_type: FUT, symbol: FDAX, exchange: EUREX, last_trade_date: 20231215}",
            ["EUREX, whose currency is not known"],
        ),
        (
            "A: {sec_type: IND, exchange: E, currency: EUR, calendar: GATEWAY}",
            ["zone of E is not known", "GATEWAY:Asia/Tokyo@16:00"],
        ),
        ("A: {multiplier: 50}", ["multiplier: is said of STK", "Only FUT"]),
        (
            "A: {sec_type: CRYPTO, what_to_show: TRADES}",
            ["does not have for CRYPTO", "AGGTRADES"],
        ),
        ("A: {sec_type: CRYPTO, use_rth: true}", ["CRYPTO has no regular hours"]),
        ("A: {sec_type: IND, exchange: CBOE, what_to_show: BID}", ["Allowed are TRADES"]),
        ("A: {sec_type: IND, exchange: CBOE, use_rth: false}", ["regular hours only"]),
        ("BTCUSD: {}", ["BTC and USD are not two", "sec_type: CRYPTO"]),
        ("A: {primary_exchange: LSE, use_rth: false}", ["sessions are not known", "GATEWAY"]),
        (
            "A: {primary_exchange: LSE, use_rth: false, calendar: XLON.ETH}",
            ["is 'XLON.ETH', which there is not", "GATEWAY"],
        ),
        (
            "A: {primary_exchange: LSE, use_rth: false, calendar: XLON.RTH}",
            ["use_rth is false", "use_rth: true"],
        ),
        ("A: {exchange: LSE, calendar: XPAR.RTH}", ["is 'XPAR.RTH'", "is XLON.RTH, or GATEWAY"]),
        ("A: {calendar: 'GATEWAY:Mars/Base'}", ["calendar: is 'GATEWAY:Mars/Base'"]),
        ("A: {exchange: FOO, currency: EUR}", ["at FOO", "not known", "ISO 10383"]),
        ("A: {what_to_show: LAST}", ["is 'LAST'", "TRADES, MIDPOINT, BID, ASK"]),
        ("A: {use_rth: maybe}", ["is 'maybe'", "true or false"]),
        ("A: {use_rth: }", ["use_rth: is empty", "a single value"]),
        ("A: {use_rth: [true]}", ["use_rth: is a list", "a single value"]),
        ("A: {timeframes: [1m, 2h]}", ["timeframes: is '2h'", "1m, 5m, 15m, 30m, 1h, 4h, 1d, 1w"]),
        ("A: {timeframes: 1m}", ["timeframes: is '1m'", "a list in brackets"]),
        ("A: {timeframes: []}", ["is an empty list", "a list in brackets"]),
        ("A: {timeframes: [1m, 1m]}", ["names 1m twice"]),
        ("A: {timeframes: [[1m]]}", ["timeframes: is a list"]),
        ("A: {start: 2020-02-30}", ["is '2020-02-30'", "such as 2020-01-31"]),
        ("A: {start: 20200101}", ["is '20200101'", "such as 2020-01-31"]),
        ("A: {start: 2020-1-1}", ["is '2020-1-1'"]),
        ("A: {start: 2020-W01-1}", ["is '2020-W01-1'"]),
        ("A: {start: 1969-12-31}", ["from 1970-01-01 to 2049-12-31"]),
        ("A: {backfill: off}", ["backfill: is 'off'", "auto, manual"]),
        ("A: {con_id: 0}", ["con_id: is '0'", "whole number"]),
        ("A: {con_id: 1.5}", ["con_id: is '1.5'"]),
        ("A: {exchange: smart}", ["exchange: is 'smart'", "in capitals"]),
        ("A: {currency: dollar}", ["currency: is 'dollar'"]),
        ("A: {currency: EUR}", ["STK at SMART", "not known", "Set primary_exchange"]),
        ("A: {symbol: ''}", ["symbol: is empty"]),
        ("A: {symbol: ' A'}", ["symbol: is ' A'"]),
        ("A: {calendar: FX}", ["calendar: is 'FX'", "is XNYS.RTH"]),
        ("A: {calendar: XLON}", ["calendar: is 'XLON'", "STK with use_rth: true is XNYS.RTH"]),
        ("EURUSD: {calendar: XNYS.ETH}", ["CASH with use_rth: false is FX"]),
        ("EURUSD: {what_to_show: TRADES}", ["does not have for CASH", "MIDPOINT, BID, ASK"]),
        ("EURUSD: {use_rth: true}", ["EURUSD > use_rth: is true", "no regular hours"]),
        ("EURUSD: {symbol: XYZ}", ["symbol 'XYZ' and currency 'USD'"]),
        ("EURUSD: {symbol: USD}", ["symbol 'USD' and currency 'USD'"]),
        ("A: {sec_type: CASH}", ["is CASH of symbol ''", "EURUSD"]),
        ("EURUDS: {}", ["EUR and UDS are not two", "sec_type: STK"]),
        ("EUREUR: {}", ["looks like a currency pair"]),
        ("1:30: {}", ["1:30: is not a symbol"]),
        ("XAUUSD: {}", ["XAU and USD are not two"]),
        ("A.ETH: {use_rth: true}", ["use_rth: is true, and the key A.ETH says false"]),
        ("A.BID: {what_to_show: ASK}", ["is ASK, and the key A.BID says BID"]),
    ],
)
def test_a_bad_entry_is_told_by_line_and_key(entry: str, parts: list[str]) -> None:
    """The text has file, line and key, what is wrong, and what is allowed."""
    found = problem(f"symbols:\n  OK: {{}}\n  {entry}\n")
    assert found.startswith("u.yaml, line 3, symbols > ")
    for part in parts:
        assert part in found


def test_an_error_in_a_list_is_told_by_its_own_line() -> None:
    """A long list says which of its lines is wrong."""
    text = "symbols:\n  A:\n    timeframes:\n      - 1m\n      - 7m\n"
    assert problem(text).startswith("u.yaml, line 5, symbols > A > timeframes: is '7m'")


def test_what_yaml_could_run_is_only_text() -> None:
    """Tags of objects are never built."""
    found = problem("symbols:\n  A: !!python/object/apply:os.system ['true']\n")
    assert "symbols > A: is a list" in found


@given(st.text(max_size=60) | st.text("sym bol:{}[]-\n\t'\"*&!%#?|>AZ.", max_size=60))
def test_no_text_at_all_ends_in_a_traceback(text: str) -> None:
    """Any text is a universe or an error that a person can read."""
    for candidate in (text, f"symbols: {text}", f"symbols:\n  A: {{{text}}}\n"):
        try:
            parse_universe(candidate, "u.yaml")
        except UniverseError as error:
            assert str(error).startswith("u.yaml, line ")  # noqa: PT017  (a good one is fine too)


def test_the_example_is_a_good_universe() -> None:
    """What everybody begins with is read without complaint, and its calendars exist."""
    universe = load_universe(EXAMPLE)
    assert list(universe.instruments) == ["AAPL", "SPY", "MSFT", "EURUSD", "AAPL.ETH", "SPY.ETH"]
    assert universe.instrument("AAPL") == AAPL
    assert universe.instrument("EURUSD").timeframes == ("1m", "5m", "1h")
    assert universe.windows == Windows()
    assert {one.calendar for one in universe.instruments.values()} <= set(calendar_keys())


def test_what_the_example_comments_out_is_good_too() -> None:
    """A person who takes the comment signs away gets what the comment says."""
    lines = EXAMPLE.read_text().splitlines()
    inside = lines[lines.index("symbols:") :]
    useful = [line for line in inside if not line.startswith("  ##")]
    opened = "\n".join(line.replace("  # ", "  ", 1) for line in useful)
    universe = parse_universe(opened, "example")
    assert universe.instrument("EURUSD.ASK").what_to_show is WhatToShow.ASK
    assert universe.instrument("SPY.BID").start == date(2024, 1, 1)
    assert universe.instrument("BRK.B").backfill is Backfill.MANUAL
    assert universe.instrument("ESZ23").end == date(2023, 12, 16)
    assert universe.instrument("VOD.ETH").calendar == "GATEWAY:Europe/London"


def test_a_missing_file_is_told_with_the_remedy(tmp_path: Path) -> None:
    """The way to a first universe is ``ktrdr init``."""
    with pytest.raises(UniverseError, match=r"no such file. Make one with `ktrdr init`"):
        load_universe(tmp_path / "universe.yaml")


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16"])
def test_a_file_in_another_encoding_is_told(tmp_path: Path, encoding: str) -> None:
    """Only UTF-8 is read."""
    path = tmp_path / "universe.yaml"
    path.write_bytes("# für später\nsymbols: {AAPL: }".encode(encoding))
    with pytest.raises(UniverseError, match=r"is not UTF-8\. Save the file as UTF-8"):
        load_universe(path)


def test_a_file_as_windows_writes_it_is_read(tmp_path: Path) -> None:
    """A byte order mark and other line ends do no harm."""
    path = tmp_path / "universe.yaml"
    path.write_bytes(b"\xef\xbb\xbf" + GOOD.replace("\n", "\r\n").encode())
    assert load_universe(path).instrument("AAPL") == AAPL


def test_a_folder_in_place_of_the_file_is_told(tmp_path: Path) -> None:
    """What cannot be read is an error and no traceback."""
    with pytest.raises(UniverseError, match="cannot be read"):
        load_universe(tmp_path)


def test_a_good_file_is_kept(tmp_path: Path) -> None:
    """Its copy has the same text, and nothing else is left behind."""
    universe, trouble = file(tmp_path, GOOD).read()
    assert trouble is None
    assert list(universe.instruments) == ["AAPL"]
    assert (tmp_path / "state" / "universe.good.yaml").read_text() == GOOD
    assert [path.name for path in (tmp_path / "state").iterdir()] == ["universe.good.yaml"]


@pytest.mark.parametrize("edit", ["symbols: [", "", None])
def test_a_bad_edit_keeps_the_last_good_universe(tmp_path: Path, edit: str | None) -> None:
    """The older state stands in and the problem is told, until the file is good again."""
    universe_file = file(tmp_path)
    good, _ = universe_file.read()
    if edit is None:
        universe_file.path.unlink()
    else:
        universe_file.path.write_text(edit)
    standing, trouble = universe_file.read()
    assert standing == good
    assert trouble is not None
    assert "universe.yaml" in str(trouble)
    assert universe_file.last_good.read_text() == GOOD
    universe_file.path.write_text("symbols: {MSFT: }")
    mended, none = universe_file.read()
    assert (list(mended.instruments), none) == (["MSFT"], None)
    assert universe_file.last_good.read_text() == "symbols: {MSFT: }"


@pytest.mark.parametrize("copy", [None, "symbols: ["])
def test_without_a_good_copy_a_bad_file_is_an_error(tmp_path: Path, copy: str | None) -> None:
    """There is nothing to stand in; the text is about the file that a person edits."""
    universe_file = file(tmp_path, "symbols: {AAPL: 5}")
    if copy is not None:
        universe_file.last_good.parent.mkdir()
        universe_file.last_good.write_text(copy)
    with pytest.raises(UniverseError, match=r"universe\.yaml, line 1, symbols > AAPL"):
        universe_file.read()


def test_an_unchanged_file_is_not_copied_again(tmp_path: Path) -> None:
    """Sensors read often; the copy is written only when there is something new."""
    universe_file = file(tmp_path)
    universe_file.read()
    before = universe_file.last_good.stat()
    universe_file.read()
    after = universe_file.last_good.stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)


def test_a_copy_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    """A file where the folder should be is an error with the path."""
    universe_file = file(tmp_path)
    (tmp_path / "state").write_text("in the way")
    with pytest.raises(DiskError, match=r"universe\.good\.yaml.*Make the folder writable"):
        universe_file.read()
