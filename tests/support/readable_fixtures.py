"""Fixtures of an empty store to read from, with settings of its own."""

import os
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.support.readable import ReadableStore


@pytest.fixture(autouse=True)
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Give each test settings of its own."""
    for name in [one for one in os.environ if one.startswith(("KTRDR_", "IB_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("KTRDR_STATE", str(tmp_path / "state"))


@pytest.fixture
def readable(tmp_path: Path) -> Iterator[ReadableStore]:
    """Yield a new store with a universe of several markets, without bars."""
    with closing(ReadableStore(tmp_path / "data")) as store:
        yield store
