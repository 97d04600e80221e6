"""Lists of symbols and timeframes: names, patterns and ALL."""

from pathlib import Path

import pytest

from ktrdr_pipelines.app.selection import (
    chosen_series,
    instruments_of,
    is_symbol_named_all,
    named_jobs,
)
from ktrdr_pipelines.app.workspace import Workspace
from ktrdr_pipelines.domain.instruments import Origin
from ktrdr_pipelines.domain.planning.date_bounds import parse_date_range
from ktrdr_pipelines.domain.planning.jobs import Mode
from ktrdr_pipelines.domain.universe.universe import Universe, parse_universe
from ktrdr_pipelines.errors import UnknownSymbolError, UsageError
from ktrdr_pipelines.settings import Settings
from ktrdr_pipelines.store.layout import create_store

UNIVERSE = """\
defaults: {timeframes: [1h, 1d], start: 2024-01-02}
symbols:
  AAPL: {}
  USO: {}
  USDJPY: {timeframes: [1h]}
  EURUSD: {timeframes: [1h]}
"""


def selected(universe: Universe, symbols: str | None) -> str:
    """Return the symbols that a list selects, in order."""
    return " ".join(one.symbol for one in instruments_of(universe, symbols))


@pytest.mark.parametrize(
    ("symbols", "expected"),
    [
        (None, "AAPL USO USDJPY EURUSD"),
        ("ALL", "AAPL USO USDJPY EURUSD"),
        ("*", "AAPL USO USDJPY EURUSD"),
        ("US*", "USO USDJPY"),
        ("*USD", "EURUSD"),
        ("US?", "USO"),
        ("[AE]*", "AAPL EURUSD"),
        ("EURUSD, US*,AAPL,USO", "EURUSD USO USDJPY AAPL"),
        ("EURUSD,ALL", "EURUSD AAPL USO USDJPY"),
    ],
)
def test_a_list_selects_each_symbol_once(symbols: str | None, expected: str) -> None:
    """Names and patterns mix; symbols come in the order of the list, then of the universe."""
    assert selected(parse_universe(UNIVERSE, "universe.yaml"), symbols) == expected


@pytest.mark.parametrize(
    ("symbols", "kind", "parts"),
    [
        ("APL*", UnknownSymbolError, ("symbols 'APL*'", "no symbol of", "Near are AAPL")),
        ("aapl*", UnknownSymbolError, ("Near are AAPL",)),
        ("all", UnknownSymbolError, ("symbol 'all'",)),
        ("X???????", UnknownSymbolError, ("quote a pattern",)),
        ("AAPL,,USO", UsageError, ("a symbol is empty",)),
        ("", UsageError, ("a symbol is empty",)),
    ],
)
def test_a_list_that_selects_nothing_is_refused(
    symbols: str, kind: type[UsageError], parts: tuple[str, ...]
) -> None:
    """A pattern without a match names near symbols."""
    with pytest.raises(kind) as caught:
        instruments_of(parse_universe(UNIVERSE, "universe.yaml"), symbols)
    assert not [part for part in parts if part not in str(caught.value)], caught.value


def test_a_symbol_named_all_is_meant_by_its_name() -> None:
    """Allstate's symbol is ALL: the star still means all."""
    universe = parse_universe(f"{UNIVERSE}  ALL: {{}}\n", "universe.yaml")
    assert selected(universe, "ALL") == "ALL"
    assert selected(universe, "*") == "AAPL USO USDJPY EURUSD ALL"
    assert is_symbol_named_all(universe, "AAPL,ALL")
    assert not is_symbol_named_all(universe, "*")
    assert not is_symbol_named_all(parse_universe(UNIVERSE, "universe.yaml"), "ALL")


@pytest.mark.parametrize(
    ("timeframes", "expected"),
    [
        ("1d,1w", "USO 1d, USO 1w, USDJPY 1d, USDJPY 1w"),
        (None, "USO 1h, USO 1d, USDJPY 1h"),
        ("ALL", "USO 1h, USO 1d, USDJPY 1h"),
        ("ALL,1d", "USO 1h, USO 1d, USDJPY 1h, USDJPY 1d"),
    ],
)
def test_all_timeframes_are_those_that_the_universe_lists(
    tmp_path: Path, timeframes: str | None, expected: str
) -> None:
    """In lists of jobs and of series alike."""
    layout = create_store(tmp_path / "data", Origin.SIMULATED)
    layout.universe.write_text(UNIVERSE)
    workspace = Workspace(Settings(ktrdr_data=layout.root, ktrdr_state=tmp_path / "state"), layout)
    whole = parse_date_range(None, None)
    jobs = named_jobs(workspace, "US*", timeframes, whole, mode=Mode.FULL)
    assert ", ".join(str(job.series) for job in jobs) == expected
    series = chosen_series(workspace.universe, workspace.store, "US*", timeframes)
    assert ", ".join(map(str, series)) == expected
