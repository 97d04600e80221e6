"""Imported bars follow a symbol that is renamed, also after a kill between any two steps."""

import shutil
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from ktrdr_pipelines.domain.coverage import Coverage
from ktrdr_pipelines.domain.instruments import Origin, identity_of
from ktrdr_pipelines.errors import KtrdrError, StoreError
from ktrdr_pipelines.store.bars.bar_store import BarStore
from ktrdr_pipelines.store.layout import StoreLayout, create_store, open_store
from ktrdr_pipelines.store.ledger.ledger import Ledger
from ktrdr_pipelines.store.maintenance.imported_renames import rename_imported, restore_imported
from ktrdr_pipelines.store.maintenance.rename import rename, retire
from ktrdr_pipelines.store.maintenance.restore import restore
from tests.support.readable import NOW, ReadableStore

SERIES = (("AAPL", "1m"), ("AAPL", "1d"))


@pytest.fixture
def readable(tmp_path: Path) -> Iterator[ReadableStore]:
    """Yield a store whose only symbol with bars has imported ones."""
    with closing(ReadableStore(tmp_path / "data")) as store:
        imported = create_store(store.root / "imported", Origin.IMPORT)
        with closing(Ledger(imported.ledger)) as ledger:
            for symbol, timeframe in SERIES:
                bars = store.fill(symbol, timeframe, "2023-12-27", "2024-01-04")
                series = store.series(symbol, timeframe)
                identity = identity_of(series, contract_id=0, origin=Origin.IMPORT)
                BarStore(imported, ledger).save(series, identity, bars, Coverage())
        yield store


def _closes(store: ReadableStore, symbol: str) -> list[list[float]]:
    read = store.open().read_bars
    return [read(symbol, one, origin="import")["close"].tolist() for _, one in SERIES]


def _imported(store: ReadableStore) -> StoreLayout:
    return open_store(store.root / "imported")


def test_imported_bars_follow_a_renamed_symbol(readable: ReadableStore) -> None:
    """With their values; nothing is left under the old one."""
    wanted = _closes(readable, "AAPL")
    rename(open_store(readable.root), "AAPL", "APPL", NOW)
    assert _closes(readable, "APPL") == wanted
    assert not _imported(readable).symbol_folder("AAPL").exists()
    assert list(_imported(readable).epochs.iterdir()) == []


@pytest.mark.parametrize("kept", ["timeframe=1m", "timeframe=1d"])
def test_an_interrupted_rename_is_completed(
    readable: ReadableStore, tmp_path: Path, kept: str
) -> None:
    """After the new files are there, and before the old ones are gone."""
    wanted, layout = _closes(readable, "AAPL"), _imported(readable)
    old = layout.symbol_folder("AAPL")
    shutil.copytree(old / kept, tmp_path / "copy")
    above = open_store(readable.root)
    rename_imported(above, "AAPL", "MSFT")
    shutil.copytree(tmp_path / "copy", old / kept)
    rename_imported(above, "AAPL", "MSFT")
    rename_imported(above, "AAPL", "MSFT")
    assert not old.exists()
    assert _closes(readable, "MSFT") == wanted


@pytest.mark.parametrize("symbol", ["AAPL", "OLD"])
def test_imported_bars_of_a_retired_symbol_are_kept_apart_and_restored(
    readable: ReadableStore, symbol: str
) -> None:
    """Under its own name or another one; while it is retired, another instrument may have it."""
    wanted, layout = _closes(readable, "AAPL"), open_store(readable.root)
    name = retire(layout, "AAPL", NOW).target
    assert not _imported(readable).symbol_folder("AAPL").exists()
    with pytest.raises(KtrdrError, match="AAPL"):
        readable.open().read_bars("AAPL", "1d", origin="import")
    restore(layout, name, NOW, new_symbol=symbol)
    assert _closes(readable, symbol) == wanted
    assert list(_imported(readable).retired.iterdir()) == []


def test_no_move_mixes_imported_bars_of_two_instruments(readable: ReadableStore) -> None:
    """A name with imported bars is taken; a retired name stays one while a part of it is kept."""
    layout, imported = open_store(readable.root), _imported(readable)
    shutil.copytree(imported.symbol_folder("AAPL"), imported.symbol_folder("OTHER"))
    with pytest.raises(StoreError, match="is there already"):
        rename(layout, "AAPL", "OTHER", NOW)
    (imported.retired / "AAPL@1" / "timeframe=1h").mkdir(parents=True)
    assert retire(layout, "AAPL", NOW).target == "AAPL@2"
    assert not imported.symbol_folder("AAPL").exists()


def test_an_interrupted_restoration_is_completed(readable: ReadableStore, tmp_path: Path) -> None:
    """Under another name, after the new files are there, and before the old ones are gone."""
    wanted, layout = _closes(readable, "AAPL"), open_store(readable.root)
    name = retire(layout, "AAPL", NOW).target
    kept = _imported(readable).retired / name
    shutil.copytree(kept, tmp_path / "copy")
    restore(layout, name, NOW, new_symbol="OLD")
    shutil.copytree(tmp_path / "copy", kept)
    restore_imported(layout, name, "AAPL", "OLD")
    assert not kept.exists()
    assert _closes(readable, "OLD") == wanted


def test_a_series_that_cannot_be_renamed_stays(readable: ReadableStore) -> None:
    """Of which a file is damaged; the others are renamed."""
    layout = _imported(readable)
    (damaged,) = layout.series_folder("AAPL", readable.series("AAPL", "1d").timeframe).iterdir()
    damaged.write_bytes(damaged.read_bytes()[:100])
    rename_imported(open_store(readable.root), "AAPL", "MSFT")
    assert [str(one) for one in layout.timeframes_of("AAPL")] == ["1d"]
    assert [str(one) for one in layout.timeframes_of("MSFT")] == ["1m"]
    assert damaged.exists()
    assert list(layout.epochs.iterdir()) == []
