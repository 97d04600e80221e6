"""Completion of symbols, timeframes and modes, as a shell asks for it."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from ktrdr_pipelines.cli.completion import complete_modes, complete_symbols, complete_timeframes
from tests.support.costs import costs

MODULE = (sys.executable, "-m", "ktrdr_pipelines.cli.main")
MOST_OF_PARSING = 4.0
"""The completions of 500 symbols over PyYAML's own reading of their file: 1.5, some 60 ms."""


def answered(line: str, **variables: str) -> list[str]:
    """Return what a shell gets for a command line; the last word is completed."""
    words = line.split(" ")
    environment = {
        **os.environ,
        "_KTRDR_COMPLETE": "complete_bash",
        "COMP_WORDS": line,
        "COMP_CWORD": str(len(words) - 1),
        **variables,
    }
    done = subprocess.run(
        MODULE, capture_output=True, text=True, check=False, env=environment, timeout=60
    )
    assert done.stderr == ""
    assert done.returncode == 0
    return done.stdout.split()


def test_a_shell_completes_symbols_timeframes_and_modes(store: Path) -> None:
    """Of a list the last entry is completed, with the symbols that are left."""
    assert answered("ktrdr load A") == ["AAPL", "ALL"]
    assert answered("ktrdr load AAPL,M") == ["AAPL,MSFT"]
    assert answered("ktrdr load AAPL 1h,1") == ["1h,1m", "1h,15m", "1h,1d", "1h,1w"]
    assert answered("ktrdr load AAPL 1h --mode t") == ["tail"]
    assert answered("ktrdr gaps EUR") == ["EURUSD"]
    assert answered("ktrdr universe retire A") == ["AAPL"]


def test_a_shell_completes_from_the_store_of_the_command_line(store: Path, tmp_path: Path) -> None:
    """--data, before or after the command, names it."""
    other = tmp_path / "other"
    other.mkdir()
    (other / "universe.yaml").write_text("symbols: {NVDA: {}}\n")
    assert answered(f"ktrdr verify --data {other} N") == ["NVDA"]
    assert answered(f"ktrdr --data {other} update N") == ["NVDA"]


@pytest.mark.parametrize("text", [None, "symbols: [", "symbols: 7\n", "- x\n", "\0"])
def test_what_cannot_be_read_has_no_completions(
    data: Path, tmp_path: Path, text: str | None, capsys: Any
) -> None:
    """No error is printed, and nothing is created."""
    if text is not None:
        data.mkdir()
        (data / "universe.yaml").write_text(text)
    before = sorted(tmp_path.rglob("*"))
    assert complete_symbols("") == ["ALL"]
    assert sorted(tmp_path.rglob("*")) == before
    assert capsys.readouterr() == ("", "")


def test_completions_of_many_symbols_are_quick(data: Path) -> None:
    """A key press must not be noticed: 500 symbols cost little more than to parse their file."""
    data.mkdir()
    entries = "".join(f"  S{number}: {{timeframes: [1d]}}\n" for number in range(500))
    text = f"symbols:\n{entries}"
    (data / "universe.yaml").write_text(text)
    assert len(complete_symbols("S")) == 500
    found = costs(
        {"complete": lambda: complete_symbols("S"), "parse": lambda: yaml.safe_load(text)}, rounds=3
    )
    assert found["complete"].over(found["parse"]) < MOST_OF_PARSING
    assert complete_timeframes("4") == ["4h"]
    assert complete_modes("b") == ["backfill"]
