"""Edits of the universe's text: one entry changes, every other byte stays."""

import pytest

from ktrdr_pipelines.domain.universe.editing import add_symbol, remove_symbol, rename_symbol
from ktrdr_pipelines.domain.universe.universe import parse_universe
from ktrdr_pipelines.errors import UniverseError

TEXT = """\
# My universe.
defaults: {timeframes: [1h,   1d], start: 2020-01-01}   # two of them

symbols:
  AAPL: {}      # the first

  # Currencies.
  EURUSD: {timeframes: [1h]}
  MSFT:
    start: 2021-01-04   # a late one
    timeframes:
      - 1d
  SPY:

# the end
"""
FLOW = "symbols: {AAPL: {}, EURUSD: {timeframes: [1h]}, MSFT: {}}  # all\n"


def test_add_writes_one_line_after_the_last_entry() -> None:
    """Everything before and after the new line is unchanged."""
    new = add_symbol(TEXT, "u.yaml", "GBPUSD", {"timeframes": "1m,1h", "start": "2022-01-03"})
    line = "  GBPUSD: {timeframes: [1m, 1h], start: 2022-01-03}\n"
    assert new.replace(line, "") == TEXT
    assert new.index(line) == new.index("\n# the end") - len(line)
    assert list(parse_universe(new, "u.yaml").instruments)[-1] == "GBPUSD"


@pytest.mark.parametrize("text", [TEXT, FLOW, TEXT.rstrip("\n"), "symbols:\n  A: {}"])
def test_what_is_added_can_be_removed_again(text: str) -> None:
    """The text is as before, except for a missing newline at its end."""
    new = add_symbol(text, "u.yaml", "QQQ", {})
    assert "QQQ" in parse_universe(new, "u.yaml").instruments
    assert remove_symbol(new, "u.yaml", "QQQ").rstrip("\n") == text.rstrip("\n")


@pytest.mark.parametrize("text", [TEXT, FLOW])
@pytest.mark.parametrize("symbol", ["AAPL", "EURUSD", "MSFT"])
def test_remove_takes_one_entry_and_nothing_else(text: str, symbol: str) -> None:
    """The other instruments are unchanged."""
    before = dict(parse_universe(text, "u.yaml").instruments)
    after = dict(parse_universe(remove_symbol(text, "u.yaml", symbol), "u.yaml").instruments)
    before.pop(symbol)
    assert after == before


def test_remove_keeps_comments_of_others() -> None:
    """A comment above another entry stays; a comment on the entry's own line is removed."""
    new = remove_symbol(TEXT, "u.yaml", "EURUSD")
    assert new == TEXT.replace("  EURUSD: {timeframes: [1h]}\n", "")
    assert "late" not in remove_symbol(TEXT, "u.yaml", "MSFT")


def test_rename_sets_what_the_old_key_derived() -> None:
    """The instrument is unchanged, although the new key alone would be another stock."""
    new = rename_symbol(TEXT, "u.yaml", "AAPL", "APPLE")
    assert new == TEXT.replace("AAPL: {}", "APPLE: {symbol: AAPL}")
    made = parse_universe(new, "u.yaml").instrument("APPLE")
    assert made.ib_symbol == "AAPL"


@pytest.mark.parametrize("symbol", ["AAPL", "EURUSD", "MSFT", "SPY"])
@pytest.mark.parametrize("text", [TEXT, FLOW.replace("}}", "}, SPY: {start: 2020-01-02}}")])
def test_rename_changes_no_instrument(text: str, symbol: str) -> None:
    """Stock or currency pair, set or derived, block or flow: only the key changes."""
    new = rename_symbol(text, "u.yaml", symbol, "NEW.1")
    before = parse_universe(text, "u.yaml").describe(parse_universe(text, "u").instrument(symbol))
    universe = parse_universe(new, "u.yaml")
    after = universe.describe(universe.instrument("NEW.1"))
    assert {name: text.rpartition(" (")[0] for name, text in after.items()} == {
        name: text.rpartition(" (")[0] for name, text in before.items()
    }
    assert set(universe.instruments) - {"NEW.1"} == set(
        parse_universe(text, "u.yaml").instruments
    ) - {symbol}


EMPTY = """\
symbols:
  MSFT: {end: 2049-01-03}
  SPY:   # no value

  # Another one.
  AAPL : ~
  QQQ:

# the end
"""


@pytest.mark.parametrize(
    ("symbol", "without", "renamed"),
    [
        ("SPY", ("  SPY:   # no value\n", ""), ("  SPY:", "  NEW: {symbol: SPY}")),
        ("AAPL", ("  AAPL : ~\n", ""), ("  AAPL : ~", "  NEW : {symbol: AAPL}")),
        ("QQQ", ("  QQQ:\n", ""), ("  QQQ:", "  NEW: {symbol: QQQ}")),
    ],
)
def test_an_entry_without_a_value_ends_behind_its_colon(
    symbol: str, without: tuple[str, str], renamed: tuple[str, str]
) -> None:
    """The comments and blank lines that follow are not its own."""
    assert remove_symbol(EMPTY, "u.yaml", symbol) == EMPTY.replace(*without)
    assert rename_symbol(EMPTY, "u.yaml", symbol, "NEW") == EMPTY.replace(*renamed)


@pytest.mark.parametrize(
    ("text", "symbol", "rest"),
    [
        ("symbols: {A:, B: ,C:}", "C", "symbols: {A:, B:}"),
        ("symbols: {A:, B: ,C:}", "B", "symbols: {A:, C:}"),
        ("symbols: {A, B:{}, C}  # c", "C", "symbols: {A, B:{}}  # c"),
        ("symbols: {A, B }", "B", "symbols: {A }"),
    ],
)
def test_entries_in_braces_need_neither_value_nor_space(text: str, symbol: str, rest: str) -> None:
    """A comma or a brace behind a key or its colon ends the entry."""
    assert remove_symbol(text, "u.yaml", symbol) == rest


def test_rename_and_remove_refuse_a_symbol_that_another_depends_on() -> None:
    """AAPL.ETH takes its contract from the entry of AAPL."""
    text = "symbols:\n  AAPL: {primary_exchange: NASDAQ}\n  AAPL.ETH: {}\n"
    with pytest.raises(UniverseError, match=r"would change AAPL\.ETH"):
        rename_symbol(text, "u.yaml", "AAPL", "APPLE")
    with pytest.raises(UniverseError, match=r"would change AAPL\.ETH"):
        remove_symbol(text, "u.yaml", "AAPL")


@pytest.mark.parametrize(
    ("edit", "match"),
    [
        (lambda: add_symbol(TEXT, "u.yaml", "aapl", {}), "already has AAPL"),
        (lambda: add_symbol(TEXT, "u.yaml", "X", {"what_to_show": "BLUE"}), "BLUE"),
        (lambda: add_symbol(TEXT, "u.yaml", "no way", {}), "is not a symbol"),
        (lambda: remove_symbol(TEXT, "u.yaml", "TSLA"), "no entry TSLA"),
        (lambda: remove_symbol("symbols: {A: {}}", "u.yaml", "A"), "the only symbol"),
        (lambda: rename_symbol(TEXT, "u.yaml", "TSLA", "T"), "no entry TSLA"),
        (lambda: rename_symbol(TEXT, "u.yaml", "AAPL", "MSFT"), "twice"),
        (lambda: add_symbol("symbols: [", "u.yaml", "A", {}), "not YAML"),
    ],
)
def test_an_invalid_edit_is_refused(edit: object, match: str) -> None:
    """The text says what is wrong."""
    with pytest.raises(UniverseError, match=match):
        edit()  # type: ignore[operator]


@pytest.mark.parametrize(
    ("text", "symbol"),
    [
        ("symbols:\n  AAPL: &one {start: 2020-01-02}\n  MSFT: *one\n", "AAPL"),
        ("symbols:\n  AAPL: &one {start: 2020-01-02}\n  MSFT: *one\n", "MSFT"),
    ],
)
def test_an_edit_that_would_break_an_alias_is_left_to_the_user(text: str, symbol: str) -> None:
    """The error is about the edit, not about the valid file."""
    parse_universe(text, "u.yaml")
    with pytest.raises(UniverseError, match=r"cannot edit u\.yaml.*alias.*by hand"):
        rename_symbol(text, "u.yaml", symbol, "NEW")
