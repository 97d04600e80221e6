"""The code of the recipes and of the page on Python runs, and SQL and Python answer the same."""

import os
import re
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import ktrdr_pipelines
from ktrdr_pipelines.app.workspace import Workspace
from ktrdr_pipelines.settings import load_settings
from ktrdr_pipelines.store.catalog.catalog import query_catalog
from ktrdr_pipelines.store.layout import open_store
from tests.support.readable import ReadableStore

DOCS = Path(ktrdr_pipelines.__file__).parent / "docs"
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)

UNIVERSE = """\
defaults: {timeframes: [1d], start: 2023-11-22}
symbols:
  AAPL: {timeframes: [1m, 5m, 1h, 1d]}
  MSFT: {}
  KO: {}
"""


def recipes() -> dict[str, tuple[str, str]]:
    """Return the SQL and the Python of each recipe by its heading."""
    _, *sections = re.split(r"^## ", (DOCS / "recipes.md").read_text("utf-8"), flags=re.MULTILINE)
    found = {}
    for section in sections:
        ((sql_kind, sql), (python_kind, python)) = _FENCE.findall(section)
        assert (sql_kind, python_kind) == ("sql", "python")
        found[section.partition("\n")[0]] = (sql, python)
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Yield a store with a half day, a gap and a split, and its catalog."""
    root = tmp_path_factory.mktemp("recipes")
    with pytest.MonkeyPatch.context() as patch:
        for name in [one for one in os.environ if one.startswith(("KTRDR_", "IB_"))]:
            patch.delenv(name)
        patch.setenv("KTRDR_STATE", str(root / "state"))
        patch.setenv("KTRDR_DATA", str(root / "data"))
        with closing(ReadableStore(root / "data", universe=UNIVERSE)) as store:
            for timeframe in ("1m", "5m", "1h"):
                store.fill("AAPL", timeframe, "2023-11-22", "2023-11-28")
                store.fill("AAPL", timeframe, "2024-01-02", "2024-01-06")
            for symbol in ("AAPL", "MSFT", "KO"):
                store.fill(symbol, "1d", "2023-11-22", "2024-02-01", without=["2024-01-10"])
            store.split("MSFT", 0.5, "2024-02-01")
        Workspace(load_settings(), open_store(root / "data")).renew_catalog()
        yield root / "data"


@pytest.fixture
def names(folder: Path) -> Iterator[dict[str, Any]]:
    """Yield what the first block of the recipes defines."""
    (_, code), *_ = _FENCE.findall((DOCS / "recipes.md").read_text("utf-8"))
    found: dict[str, Any] = {}
    exec(compile(code, "recipes.md", "exec"), found)  # noqa: S102  (as users run it)
    assert found["store"].path == folder
    yield found
    found["db"].close()


def test_there_are_ten_recipes_at_least() -> None:
    """Each has SQL and Python."""
    assert len(recipes()) >= 10


@pytest.mark.parametrize("heading", recipes())
def test_a_recipe_answers_the_same_in_sql_and_in_python(
    names: dict[str, Any], folder: Path, heading: str
) -> None:
    """As pasted; the SQL in DuckDB and through the rules of ``ktrdr query``."""
    sql, python = recipes()[heading]
    expected = names["db"].sql(sql).df()
    assert len(expected) == query_catalog(open_store(folder), sql).num_rows > 0
    exec(compile(python, "recipes.md", "exec"), names)  # noqa: S102
    result = names["result"]
    if isinstance(result, bool):
        assert result is bool(expected.iloc[0, 0])
        return
    if result.index.name is not None:
        result = result.reset_index()
    assert list(result.columns) == list(expected.columns)
    assert len(result) == len(expected)
    for name in expected.columns:
        one, other = result[name], expected[name]
        if pd.api.types.is_float_dtype(other):
            np.testing.assert_allclose(one.astype(float), other, rtol=1e-9, equal_nan=True)
        else:
            assert one.astype(str).tolist() == other.astype(str).tolist()


def test_the_code_of_the_page_on_python_runs(folder: Path) -> None:
    """Block after block, as pasted."""
    blocks = [code for kind, code in _FENCE.findall((DOCS / "python.md").read_text("utf-8"))
              if kind == "python"]  # fmt: skip
    assert len(blocks) >= 5
    found: dict[str, Any] = {}
    for code in blocks:
        exec(compile(code, "python.md", "exec"), found)  # noqa: S102
    assert found["store"].path == folder
    assert len(found["bars"]) == 4 * 7
    assert not found["ready"]
