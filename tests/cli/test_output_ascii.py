"""Terminals and locales without Unicode: escapes instead of characters, and no traceback."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

TEXT = "Zürich €, 日本 😀"
ASCII = {"PYTHONIOENCODING": "ascii"}
LATIN = {"PYTHONIOENCODING": "latin-1"}
LOCALE = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}

UNIVERSE = """\
defaults: {timeframes: [1d], start: 2024-01-02}
symbols:
  AAPL: {}   # Zürich
"""


@pytest.fixture(params=[ASCII, LOCALE], ids=["terminal", "locale"])
def terminal(request: pytest.FixtureRequest) -> dict[str, str]:
    """Return the environment of a process that can print ASCII only."""
    return os.environ | request.param


def test_rows_are_escaped(process: Any, store: Path, terminal: dict[str, str]) -> None:
    """Tables and CSV have escapes; JSON has its own, so that the values are the same."""
    sql = f"SELECT '{TEXT}' AS \"Ort ä\", 1 AS n"
    table = process("query", sql, env=terminal)
    assert (table.code, table.err) == (0, "")
    assert "Z\\xfcrich \\u20ac, \\u65e5\\u672c \\U0001f600" in table.out
    assert len({len(line) for line in table.out.splitlines()}) == 1
    as_csv = process("query", sql, "--csv", env=terminal)
    assert as_csv.out.startswith("Ort \\xe4,n\n")
    as_json = process("query", sql, "--json", env=terminal)
    assert as_json.rows == [{"Ort ä": TEXT, "n": 1}]
    assert (table.out + as_csv.out + as_json.out).isascii()


def test_sql_from_stdin_is_read_as_utf_8(
    process: Any, store: Path, terminal: dict[str, str]
) -> None:
    """A file that is piped in means the same in every locale."""
    result = process("query", "-", "--json", env=terminal, input=f"SELECT '{TEXT}' AS a")
    assert result.rows == [{"a": TEXT}]


@pytest.mark.parametrize(
    ("arguments", "code"),
    [(("query", f'FROM "{TEXT}"'), 2), (("query", "--nö"), 2)],
    ids=["error of the project", "unknown option"],
)
def test_errors_are_printed(process: Any, store: Path, arguments: Any, code: int) -> None:
    """They are on stderr, with escapes."""
    result = process(*arguments, env=os.environ | LOCALE | ASCII)
    result.is_error(code)
    assert result.all.isascii(), result.all


def test_errors_are_json(process: Any, store: Path) -> None:
    """They are on stdout, as a document."""
    result = process("load", "Ä", "1d", "--json", env=os.environ | LOCALE)
    assert result.code == 2
    assert result.all.isascii(), result.all
    assert result.document["error"]["kind"] == "UnknownSymbolError"


@pytest.mark.parametrize("arguments", [("status",), ("universe", "check", "--json")], ids=" ".join)
def test_a_universe_with_comments_of_any_language_is_read(
    process: Any, store: Path, arguments: tuple[str, ...]
) -> None:
    """Its file is UTF-8, whatever the locale; tables have ASCII borders."""
    (store / "universe.yaml").write_text(UNIVERSE, encoding="utf-8")
    result = process(*arguments, env=os.environ | LOCALE | ASCII)
    assert (result.code, result.err) == (0, "")
    assert result.out.isascii()


def test_json_is_valid_on_a_latin_1_terminal(process: Any, store: Path) -> None:
    """It has escapes unless the terminal can print every character."""
    result = process("query", f"SELECT '{TEXT}' AS a", "--json", env=os.environ | LATIN)
    assert result.rows == [{"a": TEXT}]
    result = process("query", f"SELECT '{TEXT}' AS a", "--json")
    assert TEXT in result.out
    assert json.loads(result.out)["rows"] == [{"a": TEXT}]
