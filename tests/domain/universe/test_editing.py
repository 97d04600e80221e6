"""Edits of the universe's text: one entry changes, every other byte stays."""

import pytest

from ktrdr_pipelines.domain.universe.editing import (
    add_entry,
    add_symbol,
    alone,
    entry_text,
    remove_symbol,
    rename_symbol,
    set_fields,
    with_last_good,
)
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


FIELDS = """\
symbols:
  A: {start: 2021-01-04, timeframes: [1d, 1h], symbol: "BRK B"}  # a
  B:
    start: 2021-01-04   # b
    timeframes:
      - 1d
    use_rth: false
  C: # c
  D: {start: 2021-01-04}
"""


@pytest.mark.parametrize(
    ("symbol", "fields", "old", "new"),
    [
        ("A", {"start": ""}, "{start: 2021-01-04, time", "{time"),
        ("A", {"timeframes": ""}, " timeframes: [1d, 1h],", ""),
        ("A", {"symbol": ""}, ', symbol: "BRK B"', ""),
        (
            "A",
            {"symbol": "BF B", "start": "2022-01-03"},
            '2021-01-04, timeframes: [1d, 1h], symbol: "BRK B"',
            "2022-01-03, timeframes: [1d, 1h], symbol: BF B",
        ),
        ("B", {"start": "2022-01-03"}, "2021-01-04   # b", "2022-01-03   # b"),
        ("B", {"timeframes": "1h,1m"}, "timeframes:\n      - 1d\n", "timeframes: [1h, 1m]\n"),
        ("B", {"timeframes": ""}, "    timeframes:\n      - 1d\n", ""),
        ("B", {"con_id": "5"}, "B:\n", "B:\n    con_id: 5\n"),
        ("C", {"ended": "true"}, "C: # c", "C: {ended: true} # c"),
        ("D", {"start": ""}, "D: {start: 2021-01-04}", "D: {}"),
        ("D", {"end": ""}, "D:", "D:"),
    ],
)
def test_set_changes_the_fields_that_are_named(
    symbol: str, fields: dict[str, str], old: str, new: str
) -> None:
    """Comments and everything else are as before."""
    changed = set_fields(FIELDS, "u.yaml", symbol, fields)
    at = FIELDS.index(f"  {symbol}:")
    assert changed == FIELDS[:at] + FIELDS[at:].replace(old, new, 1)


def test_set_does_not_change_the_defaults_that_an_alias_names() -> None:
    """The field's value stands elsewhere in the file, and others may use it."""
    text = "defaults: {timeframes: &t [1d]}\nsymbols:\n  AAPL: {timeframes: *t}\n  MSFT: {}\n"
    with pytest.raises(UniverseError, match=r"cannot set timeframes of AAPL.*alias"):
        set_fields(text, "u.yaml", "AAPL", {"timeframes": "1w"})


def test_set_changes_symbols_that_take_the_contract_from_the_entry() -> None:
    """`AAPL.ETH` ends with `AAPL`; a malformed value changes nothing."""
    text = "symbols: {AAPL: {}, AAPL.ETH: {}}"
    changed = parse_universe(set_fields(text, "u.yaml", "AAPL", {"end": "2024-03-02"}), "u.yaml")
    assert {str(one.end) for one in changed.instruments.values()} == {"2024-03-02"}
    with pytest.raises(UniverseError, match=r"AAPL > end: is 'soon'"):
        set_fields(text, "u.yaml", "AAPL", {"end": "soon"})


@pytest.mark.parametrize(
    ("entry", "ib_symbol", "renamed"),
    [
        ("{}", "", "{con_id: 5}"),
        ("{symbol: FB.A}", "", "{con_id: 5, symbol: FB.A}"),
        ("{con_id: 7}", "", "{con_id: 7}"),
        ("{}", "META", "{con_id: 5, symbol: META}"),
        ("{sec_type: CRYPTO}", "", "{symbol: FB, sec_type: CRYPTO}"),
    ],
)
def test_rename_writes_the_contract_in_place_of_a_derived_symbol(
    entry: str, ib_symbol: str, renamed: str
) -> None:
    """Fields that the user set stay; a symbol that is told is written."""
    text = f"symbols:\n  FB: {entry}\n  A: {{}}\n"
    new = rename_symbol(text, "u.yaml", "FB", "META", contract_id=5, ib_symbol=ib_symbol)
    assert parse_universe(new, "u").instrument("META") == parse_universe(
        f"symbols: {{META: {renamed}}}", "u"
    ).instrument("META")
    assert new.endswith("  A: {}\n")


def test_an_entry_moves_to_another_text_with_all_that_it_had() -> None:
    """Block or flow, quoted values, and what it took from another entry."""
    text = (
        "defaults: {use_rth: true}\nsymbols:\n  V: {primary_exchange: LSE, end: 2024-03-02}\n"
        '  V.MID:\n    symbol: "null"\n    timeframes:\n      - 1d\n'
    )
    entry = entry_text(text, "u.yaml", "V.MID")
    before = parse_universe(text, "u").instrument("V.MID")
    other = alone(text, "u.yaml", "V.MID", entry)
    assert parse_universe(other, "u").instrument("V.MID") == before
    assert before.ib_symbol == "null"
    added = add_entry("symbols: {A: {}}", "u.yaml", "V.MID", entry)
    assert parse_universe(added, "u").instrument("V.MID") == before


def test_malformed_entries_are_replaced_by_earlier_ones() -> None:
    """Quoted keys and values are read as they were written."""
    good = 'symbols: {"7203": {exchange: TSEJ}, NO: {symbol: "1E5"}, GONE: {}}'
    text = "windows: {1m: 2021-01}\nsymbols: {NO: 5, '7203': [], NEW: {}, BAD: {start: x}}"
    used = parse_universe(with_last_good(text, "u", good, {"NO", "7203", "BAD"}), "u")
    assert list(used.instruments) == ["NO", "7203", "NEW", "GONE"]
    assert used.instrument("NO").ib_symbol == "1E5"
    assert used.instrument("7203").exchange == "TSEJ"
    assert used.windows.first_year_1m == 2021
