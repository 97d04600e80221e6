"""A new store, and a fake gateway with a load manager, for the tests of gaps."""

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from ktrdr_pipelines.store.bars.bar_store import BarStore
from ktrdr_pipelines.store.layout import StoreLayout, create_store
from ktrdr_pipelines.store.ledger.ledger import Ledger
from tests.support.loading import folders, harness, world

__all__ = ["folders", "harness", "world"]


@pytest.fixture
def layout(tmp_path: Path) -> StoreLayout:
    """Return a new store."""
    return create_store(tmp_path / "data")


@pytest.fixture
def store(layout: StoreLayout) -> Iterator[BarStore]:
    """Yield the bars of the new store."""
    with closing(Ledger(layout.ledger)) as ledger:
        yield BarStore(layout, ledger)
