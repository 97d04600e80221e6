"""A store to draw charts of."""

import os
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from ktrdr_pipelines.app.charts.bar_chart import BarChart, bar_chart
from ktrdr_pipelines.app.workspace import Workspace
from ktrdr_pipelines.domain.planning.date_bounds import parse_date_range
from ktrdr_pipelines.settings import load_settings
from ktrdr_pipelines.store.layout import open_store
from tests.support.readable import ReadableStore


@pytest.fixture
def readable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ReadableStore]:
    """Yield a new store with a universe of several markets, without bars."""
    for name in [one for one in os.environ if one.startswith(("KTRDR_", "IB_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("KTRDR_STATE", str(tmp_path / "state"))
    monkeypatch.setenv("KTRDR_DATA", str(tmp_path / "data"))
    with closing(ReadableStore(tmp_path / "data")) as store:
        yield store


@pytest.fixture
def chart(readable: ReadableStore) -> Callable[..., BarChart]:
    """Return a function that reads a chart of the store at the time of its clock."""

    def read(
        symbol: str, timeframe: str, start: str | None = None, end: str | None = None, **other: bool
    ) -> BarChart:
        workspace = Workspace(load_settings(), open_store(readable.root), real=lambda: readable.now)
        return bar_chart(workspace, symbol, timeframe, parse_date_range(start, end), **other)

    return read
