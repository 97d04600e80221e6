"""The universe: order, windows, finding and describing symbols, the example file."""

from datetime import date
from pathlib import Path

import pytest

from ktrdr_pipelines.domain.calendars.registry import calendar_keys
from ktrdr_pipelines.domain.instruments import Backfill, WhatToShow
from ktrdr_pipelines.domain.timeframes import Timeframe
from ktrdr_pipelines.domain.universe.universe import Universe, Windows, parse_universe
from ktrdr_pipelines.errors import UnknownSymbolError
from ktrdr_pipelines.store.universe_file import load_universe
from tests.support.universes import AAPL, GOOD

EXAMPLE = Path(__file__).parents[3] / "data" / "universe.example.yaml"


def test_symbols_are_in_the_order_of_the_file() -> None:
    """Series and symbols follow the file, not the alphabet."""
    text = "symbols:\n  MSFT: {timeframes: [1d, 1m]}\n  AAPL: {timeframes: [1m]}\n"
    universe = parse_universe(text, "u.yaml")
    assert list(universe.instruments) == ["MSFT", "AAPL"]
    assert [str(series) for series in universe.series()] == ["MSFT 1d", "MSFT 1m", "AAPL 1m"]
    assert [str(series) for series in universe.series(Timeframe.M1)] == ["MSFT 1m", "AAPL 1m"]
    assert universe.series(Timeframe.W1) == ()


def test_windows_begin_in_2020_and_1980_unless_set() -> None:
    """A year for 1m and one for all other timeframes; a month of 1m stands for its year."""
    assert parse_universe(GOOD, "u").windows == Windows(2020, 1980)
    changed = parse_universe(GOOD + "windows: {1m: 2015-07, yearly: 1999}", "u")
    assert changed.windows == Windows(2015, 1999)
    half = parse_universe(GOOD + "windows: {1m: '2016'}", "u")
    assert half.windows == Windows(2016, 1980)


def test_windows_begin_no_later_than_those_in_use() -> None:
    """What the file asks for is told where it is later, by key."""
    later = parse_universe(GOOD + "windows: {1m: 2021, yearly: 1970}", "u.yaml")
    used = later.with_windows_since(Windows(2020, 1980))
    assert used.windows == Windows(2020, 1970)
    assert "later start, 1m: 2021 (in use: 2020): windows begin where they did" in (
        used.windows_notice
    )
    assert later.with_windows_since(Windows(2022, 1980)).windows_notice == ""


def test_the_error_of_an_unknown_symbol_names_similar_ones_and_the_file() -> None:
    """Its hint says what may be meant, and where to add the symbol."""
    universe = parse_universe("symbols: {AAPL: , AAPL.ETH: , MSFT: }", "my/universe.yaml")
    assert universe.instrument("AAPL") == AAPL
    for symbol, near in (("APPL", "AAPL"), ("aapl", "AAPL, AAPL.ETH")):
        with pytest.raises(UnknownSymbolError) as caught:
            universe.instrument(symbol)
        assert str(caught.value) == (
            f"symbol {symbol!r}: not in the universe. Hint: Did you mean {near}? "
            "Add it under `symbols:` in my/universe.yaml"
        )
    with pytest.raises(UnknownSymbolError, match=r"universe\. Hint: Add it"):
        universe.instrument("ZZZZZZ")


@pytest.mark.parametrize(
    "text",
    [
        "symbols: {NO: {}, ON: {}, 1E5: {}}",
        "symbols: {NO:{}, ON:, 1E5:}",
        "symbols: {NO:,ON,1E5}",
        "symbols: {NO:\n, ON:{ }\n, 1E5: }",
        "symbols:\n  NO:\n  ON: ~\n  1E5: {}\n",
        "symbols:\n  NO: &a {}\n  ON: &a {}\n  1E5: *a\n",
        "%YAML 1.2\n---\nsymbols:\n  'NO': {}\n  \"ON\": {}\n  ? 1E5\n  : {}\n...\n",
    ],
)
def test_keys_are_words_as_written(text: str) -> None:
    """No key is a boolean or a number, whatever the notation, with or without a space."""
    assert list(parse_universe(text, "u.yaml").instruments) == ["NO", "ON", "1E5"]


@pytest.mark.parametrize("word", ["true", "yes", "on", "On", "YES", "True"])
def test_flags_are_words_of_yaml_1_1(word: str) -> None:
    """A file of an earlier version means what it meant."""
    universe = parse_universe(f"symbols: {{AAPL: {{use_rth: {word}}}}}", "u.yaml")
    assert universe.instrument("AAPL").use_rth


def test_describing_shows_each_field_and_its_origin() -> None:
    """A field is set, a default, as in the base symbol, or derived."""
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
        "timeframes": "1m, 5m (set)",
        "start": "2021-01-01 (defaults)",
        "end": "none (derived)",
        "backfill": "auto (derived)",
    }
    assert Universe({"AAPL": AAPL}).describe(AAPL)["exchange"] == "SMART (set)"


def test_the_example_is_valid() -> None:
    """It is read without an error, and its calendars exist."""
    universe = load_universe(EXAMPLE)
    assert list(universe.instruments) == ["AAPL", "SPY", "MSFT", "EURUSD", "AAPL.ETH", "SPY.ETH"]
    assert universe.instrument("AAPL") == AAPL
    assert universe.instrument("EURUSD").timeframes == ("1m", "5m", "1h")
    assert universe.windows == Windows(2020, 1990)
    assert {one.calendar for one in universe.instruments.values()} <= set(calendar_keys())


def test_the_commented_entries_of_the_example_are_valid() -> None:
    """Without the comment signs, each means what its comment says."""
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
