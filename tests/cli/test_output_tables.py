"""Tables of hundreds of rows, which are printed without the library that lays out small ones."""

import pytest

from ktrdr_pipelines.cli.output import say_table

COLUMNS = {"series": "fold", "bars": "right", "first": "left", "remark": "left?"}


def _printed(capsys: pytest.CaptureFixture[str], rows: list[tuple[str, ...]]) -> list[str]:
    say_table(COLUMNS, rows)
    return capsys.readouterr().out.splitlines()


@pytest.mark.parametrize(
    "cells",
    [
        ("AAPL 1m", "1,000", "2024-01-02", "empty"),
        ("日本 1d", "", "é", ""),
        ("A [b] 1d", "7", "", ""),
    ],
)
def test_a_large_table_looks_like_a_small_one(
    capsys: pytest.CaptureFixture[str], cells: tuple[str, ...]
) -> None:
    """One more row changes nothing of the rows above it."""
    rows = [("A longer name 30m", "12,345,678", "2004-01-02", "3 failed attempts"), cells] * 50
    small, large = _printed(capsys, rows), _printed(capsys, [*rows, cells])
    assert len(small) == 104
    assert large[:103] == small[:103]
    assert large[103] == large[102]
    assert large[104:] == small[103:]


def test_a_large_table_with_wrapped_cells_wraps_them(capsys: pytest.CaptureFixture[str]) -> None:
    """A cell that is too wide is wrapped in every row."""
    wide = " ".join(["word"] * 60)
    lines = _printed(capsys, [(wide, "1", "", "")] * 101)
    assert max(map(len, lines)) <= 160
    assert sum(line.split()[0] == "word" for line in lines if line.strip()) > 101
