"""Errors of a malformed universe: where, what is wrong, and what is allowed."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ktrdr_pipelines.domain.universe.universe import parse_universe, read_universe
from ktrdr_pipelines.errors import UniverseError


def problem(text: str) -> str:
    """Return the text of the error of a universe."""
    with pytest.raises(UniverseError) as caught:
        parse_universe(text, "u.yaml")
    return str(caught.value)


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
            ["line 4, symbols > AAPL: is given twice", "line 2"],
        ),
        (
            "symbols:\n  AAPL: {use_rth: yes, use_rth: no}\n",
            ["line 2, symbols > AAPL > use_rth: is given twice"],
        ),
        ("symbols: {A: }\nsymbols: {B: }\n", ["line 2, symbols: is given twice"]),
        (
            "symbols:\n  AAPL: {}\n  aapl: {}\n",
            ["line 3, symbols > aapl: differs from AAPL by case only"],
        ),
        ("symbols:\n  AAPL: 5\n", ["line 2, symbols > AAPL: is '5'", "must be a mapping"]),
        ("windows: {1h: 2020}\nsymbols: {A: }", ["windows > 1h: is not a known key", "1m, yearly"]),
        ("windows: {1m: 2020-13}\nsymbols: {A: }", ["1m: is '2020-13'", "a year such as 2020"]),
        ("windows: {1m: 20}\nsymbols: {A: }", ["1m: is '20'", "a year such as 2020"]),
        ("windows: {1m: 1960-01}\nsymbols: {A: }", ["Years go from 1970 to 2049"]),
        ("windows: {yearly: 80}\nsymbols: {A: }", ["yearly: is '80'", "a year such as 1980"]),
        ("windows: {yearly: 2050}\nsymbols: {A: }", ["Years go from 1970 to 2049"]),
        ("defaults: {symbol: A}\nsymbols: {A: }", ["defaults > symbol: is not a known key"]),
    ],
)
def test_the_error_of_a_malformed_file_has_line_and_key(text: str, parts: list[str]) -> None:
    """The text says where the file is wrong, and what is allowed."""
    found = problem(text)
    assert found.startswith("u.yaml, line ")
    for part in parts:
        assert part in found


@pytest.mark.parametrize(
    "key", [".A", "-A", "A B", "A/B", "A:B", "Ä", "A" * 21, "''", "A|B", "<<", "..", "A\\nB"]
)
def test_a_key_that_is_no_symbol_is_refused(key: str) -> None:
    """Symbols are folder names and partition keys; the text has the rule."""
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
        ("A: {sec_type: CONTFUT}", ["CONTFUT, which is not supported", "single contracts"]),
        ("A: {what_to_show: BID_ASK}", ["BID_ASK, which is not supported", "one symbol with BID"]),
        ("A: {what_to_show: ADJUSTED_LAST}", ["is not supported", "TRADES, which is adjusted"]),
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
            ["it ended on 2019-12-21", "its start is 2020-01-01", "earlier `start`"],
        ),
        ("A: {end: 2019-01-01}", ["A > end: means that it ended on 2019-01-01"]),
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
            ["EUREX", "sessions are not known", "DAX, ESTX50", "calendar: GATEWAY"],
        ),
        (
            "A: {sec_type: FUT, symbol: X, exchange: FOO, last_trade_date: 20231215}",
            ["FOO, whose currency is not known", "none of the", "similar ones are"],
        ),
        (
            "A: {sec_type: IND, exchange: E, currency: EUR, calendar: GATEWAY}",
            ["zone of E is not known", "GATEWAY:Asia/Tokyo@16:00"],
        ),
        ("A: {multiplier: 50}", ["multiplier: is given for STK", "Only FUT"]),
        (
            "A: {sec_type: CRYPTO, what_to_show: TRADES}",
            ["does not serve for CRYPTO", "AGGTRADES"],
        ),
        ("A: {sec_type: CRYPTO, use_rth: true}", ["CRYPTO has no regular hours"]),
        ("A: {sec_type: IND, exchange: CBOE, what_to_show: BID}", ["Allowed are TRADES"]),
        ("A: {sec_type: IND, exchange: CBOE, use_rth: false}", ["regular hours only"]),
        ("BTCUSD: {}", ["BTC and USD are not two", "sec_type: CRYPTO"]),
        ("A: {primary_exchange: LSE, use_rth: false}", ["sessions are not known", "GATEWAY"]),
        (
            "A: {primary_exchange: LSE, use_rth: false, calendar: XLON.ETH}",
            ["is 'XLON.ETH', which does not exist", "GATEWAY"],
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
        ("EURUSD: {what_to_show: TRADES}", ["does not serve for CASH", "MIDPOINT, BID, ASK"]),
        ("EURUSD: {use_rth: true}", ["EURUSD > use_rth: is true", "no regular hours"]),
        ("EURUSD: {symbol: XYZ}", ["symbol 'XYZ' and currency 'USD'"]),
        ("EURUSD: {symbol: USD}", ["symbol 'USD' and currency 'USD'"]),
        ("A: {sec_type: CASH}", ["is CASH with symbol ''", "EURUSD"]),
        ("EURUDS: {}", ["EUR and UDS are not two", "sec_type: STK"]),
        ("EUREUR: {}", ["looks like a currency pair"]),
        ("1:30: {}", ["1:30: is not a symbol"]),
        ("XAUUSD: {}", ["XAU and USD are not two"]),
        ("A.ETH: {use_rth: true}", ["use_rth: is true, but the key A.ETH sets false"]),
        ("A.BID: {what_to_show: ASK}", ["is ASK, but the key A.BID sets BID"]),
    ],
)
def test_the_error_of_a_malformed_entry_has_line_and_key(entry: str, parts: list[str]) -> None:
    """The text has file, line and key, what is wrong, and what is allowed."""
    found = problem(f"symbols:\n  OK: {{}}\n  {entry}\n")
    assert found.startswith("u.yaml, line 3, symbols > ")
    for part in parts:
        assert part in found


def test_an_error_in_a_list_has_the_line_of_its_item() -> None:
    """A long list may be wrong in one line."""
    text = "symbols:\n  A:\n    timeframes:\n      - 1m\n      - 7m\n"
    assert problem(text).startswith("u.yaml, line 5, symbols > A > timeframes: is '7m'")


def test_tags_of_yaml_objects_are_not_constructed() -> None:
    """A tag that would run code is read as plain data."""
    found = problem("symbols:\n  A: !!python/object/apply:os.system ['true']\n")
    assert "symbols > A: is a list" in found


def test_all_errors_of_an_entry_are_told_at_once() -> None:
    """One line each; what only follows from a malformed field is left out."""
    found = problem(
        "symbols:\n  A:\n    start: soon\n    timeframes: [7m]\n    colour: blue\n"
        "    what_to_show: AGGTRADES\n  B: {sec_type: FUT, last_trade_date: x, exchange: CME}\n"
    )
    lines = found.splitlines()
    assert [line.partition(": ")[0] for line in lines] == [
        "u.yaml, line 3, symbols > A > start",
        "u.yaml, line 4, symbols > A > timeframes",
        "u.yaml, line 5, symbols > A > colour",
        "u.yaml, line 6, symbols > A > what_to_show",
        "u.yaml, line 7, symbols > B > last_trade_date",
        "u.yaml, line 7, symbols > B",
    ]
    assert "without `symbol`" in lines[-1]
    assert "without `last_trade_date`" not in found


@pytest.mark.parametrize(
    ("text", "good", "bad"),
    [
        ("symbols: {A: {}, B: {start: soon}, C: {}}", ["A", "C"], ["B"]),
        ("symbols: {A: {}, B: 5, A: {}}", [], ["A", "B"]),
        ("symbols: {A: {}, a: {}, 'B C': {}}", ["A"], ["a", "B C"]),
        ("symbols: {A: {con_id: x}, A.ETH: {}, B: {}}", ["B"], ["A", "A.ETH"]),
        ("symbols: {A: {sec_type: BOND}, B: {}}", ["B"], ["A"]),
    ],
)
def test_a_bad_entry_does_not_hide_the_others(text: str, good: list[str], bad: list[str]) -> None:
    """Entries that are valid have instruments, the errors of the others are kept by key."""
    universe = read_universe(text, "u.yaml")
    assert list(universe.instruments) == good
    assert sorted(universe.problems) == sorted(bad)
    assert all(str(one).startswith("u.yaml, line 1, symbols >") for one in universe.all_problems)


@given(st.text(max_size=60) | st.text("sym bol:{}[]-\n\t'\"*&!%#?|>AZ.", max_size=60))
def test_any_text_is_a_universe_or_an_error(text: str) -> None:
    """Any text is a universe or raises a UniverseError."""
    for candidate in (text, f"symbols: {text}", f"symbols:\n  A: {{{text}}}\n"):
        try:
            parse_universe(candidate, "u.yaml")
        except UniverseError as error:
            assert str(error).startswith("u.yaml, line ")  # noqa: PT017  (a valid one is fine too)
