"""Paths of the store at which something else lies than the expected file or folder."""

import os
import shutil
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from ktrdr_pipelines.domain.timeframes import Timeframe
from ktrdr_pipelines.errors import CorruptFileError, OddPathError, StoreError
from ktrdr_pipelines.store.bars.bar_store import BarStore
from ktrdr_pipelines.store.catalog.catalog import query_catalog
from ktrdr_pipelines.store.layout import StoreLayout, create_store, open_store
from ktrdr_pipelines.store.ledger.ledger import open_ledger
from ktrdr_pipelines.store.maintenance.inspection import quarantine
from ktrdr_pipelines.store.maintenance.odd_paths import quarantine_odd_paths
from ktrdr_pipelines.store.maintenance.repair import repair
from tests.support.oddities import PRECIOUS, outside, put

NOW = datetime(2024, 6, 3, 20, tzinfo=UTC)
OPEN = datetime(2024, 6, 3, 13, 30, tzinfo=UTC)
M1 = "bars/symbol=AAPL/timeframe=1m"
NO_FILES = ["link to nothing", "loop", "link to folder", "folder", "pipe", "socket"]


@pytest.fixture(scope="module")
def template(make: Any, tmp_path_factory: pytest.TempPathFactory) -> StoreLayout:
    """Return a store of two symbols with a catalog and a universe, to be copied."""
    layout = create_store(tmp_path_factory.mktemp("template") / "data")
    with closing(open_ledger(layout)) as ledger:
        for symbol in ("AAPL", "MSFT"):
            series = make.series(symbol=symbol)
            make.save(BarStore(layout, ledger), series, make.run(series, OPEN, 10))
    layout.universe.write_text("symbols: {AAPL: {}, MSFT: {}}\n")
    (layout.state / "universe.good.yaml").write_bytes(layout.universe.read_bytes())
    repair(layout, instruments(make), NOW)
    return layout


@pytest.fixture
def filled(template: StoreLayout, tmp_path: Path) -> Iterator[StoreLayout]:
    """Yield a copy of the template; nothing outside it may change."""
    shutil.copytree(template.root, tmp_path / "data")
    layout = open_store(tmp_path / "data")
    yield layout
    for path in outside(layout.marker).rglob("inside"):
        assert path.read_text() == PRECIOUS


def instruments(make: Any) -> list[Any]:
    """Return the instruments of the filled store."""
    return [make.instrument(symbol) for symbol in ("AAPL", "MSFT")]


# Each path of the store with one or two kinds; ``tests/store/test_files.py`` has every kind.
ODD_PATHS = [
    (f"{M1}/2024.parquet", "link to file"),
    (f"{M1}/2024.parquet", "folder"),
    (f"{M1}/2024.parquet", "pipe"),
    (f"{M1}/2023.parquet", "loop"),
    (f"{M1}/2023.parquet", "link to nothing"),
    ("ktrdr.duckdb", "pipe"),
    ("ktrdr.duckdb.wal", "link to file"),
    ("universe.yaml", "pipe"),
    ("universe.yaml", "link to nothing"),
    ("state/ledger.sqlite", "pipe"),
    ("state/ledger.sqlite", "folder"),
    ("state/ledger.sqlite-wal", "loop"),
    ("state/ledger.sqlite-shm", "folder"),
    ("state/ledger.lock", "link to folder"),
    ("state/move.json", "socket"),
    ("state/universe.good.yaml", "link to folder"),
    ("state/dagster.log", "link to nothing"),
    ("state/locks/AAPL.1m.lock", "link to file"),
    ("state/locks/store.lock", "loop"),
    ("state/locks/catalog.lock", "folder"),
    ("state/locks/move.lock", "link to folder"),
    (".ktrdr.duckdb.1-aa.tmp", "loop"),
    (f"{M1}/.2024.parquet.1-aa.tmp", "folder"),
    (M1, "loop"),
    (M1, "pipe"),
    ("bars/symbol=AAPL", "link to file"),
    ("bars/symbol=AAPL", "link to nothing"),
    ("bars/symbol=NEW", "socket"),
    ("bars", "loop"),
    ("bars", "file"),
    ("epochs", "link to nothing"),
    ("retired", "link to file"),
    ("state", "socket"),
    ("state/locks", "file"),
    ("quarantine", "loop"),
    ("quarantine", "file"),
]


@pytest.mark.parametrize(("name", "kind"), ODD_PATHS)
def test_what_cannot_be_used_is_quarantined_as_it_is(
    filled: StoreLayout, make: Any, name: str, kind: str
) -> None:
    """A repair quarantines and reports it, and leaves a store that can be used."""
    path = filled.root / name
    put(path, kind)
    before = path.lstat()
    layout = open_store(filled.root)
    report = repair(layout, instruments(make), NOW)
    (item,) = [one for one in report.quarantined if one.was == path]
    assert (item.now.lstat().st_ino, item.now.lstat().st_mode) == (before.st_ino, before.st_mode)
    assert f"{item.was} is now {item.now}: it is " in str(item)
    series = make.series()
    store = BarStore(layout, open_ledger(layout))
    make.save(store, series, make.run(series, OPEN, 20))
    assert store.rows(series) == 20
    assert quarantine_odd_paths(layout) == []
    for target in outside(path).glob("file"):
        assert target.read_text() == PRECIOUS


def test_an_odd_universe_is_replaced_by_its_last_good_copy(filled: StoreLayout, make: Any) -> None:
    """Repair restores what the user had."""
    text = filled.universe.read_text()
    put(filled.universe, "folder")
    repair(filled, instruments(make), NOW)
    assert filled.universe.read_text() == text


def test_the_logs_of_an_odd_ledger_are_quarantined_with_it(filled: StoreLayout, make: Any) -> None:
    """SQLite would apply the old log to the new ledger."""
    log = filled.ledger_beside("-wal")
    log.write_bytes(b"of the old ledger")
    put(filled.ledger, "folder")
    report = repair(filled, instruments(make), NOW)
    assert {one.was for one in report.quarantined} == {log, filled.ledger}


@pytest.mark.parametrize("kind", ["link to nothing", "link to file", "folder", "pipe"])
def test_an_odd_bar_file_is_named_by_every_reader(
    filled: StoreLayout, make: Any, kind: str
) -> None:
    """Reading, saving and counting give an error that names it; it stays where it is."""
    path = filled.root / M1 / "2024.parquet"
    put(path, kind)
    before = path.lstat().st_ino
    series = make.series()
    layout = open_store(filled.root)
    store = BarStore(layout, open_ledger(layout))
    for act in (
        lambda: store.read(series),
        lambda: store.coverage(series),
        lambda: make.save(store, series, make.run(series, OPEN, 20)),
    ):
        with pytest.raises(CorruptFileError, match=r"2024\.parquet.*ktrdr repair"):
            act()
    assert path.lstat().st_ino == before


@pytest.mark.parametrize(
    ("name", "kind"),
    [(M1, "link to nothing"), (M1, "pipe"), ("bars/symbol=AAPL", "loop"), (M1, "link to file")],
)
def test_an_odd_folder_of_bars_is_named(
    filled: StoreLayout, make: Any, name: str, kind: str
) -> None:
    """Bars are neither read from it nor saved into it."""
    put(filled.root / name, kind)
    series = make.series()
    layout = open_store(filled.root)
    store = BarStore(layout, open_ledger(layout))
    for act in (
        lambda: store.read(series),
        lambda: make.save(store, series, make.run(series, OPEN, 20)),
    ):
        with pytest.raises(OddPathError, match=rf"{name}.*ktrdr repair"):
            act()


@pytest.mark.parametrize("kind", NO_FILES)
def test_an_odd_marker_is_to_be_moved_by_hand(layout: StoreLayout, kind: str) -> None:
    """The error says what lies there and what the file should contain; nothing is written."""
    put(layout.marker, kind) if kind != "link to folder" else layout.marker.unlink()
    if kind == "link to folder":
        layout.marker.symlink_to("bars")
    before = layout.marker.lstat().st_ino
    for act in (open_store, create_store):
        with pytest.raises(CorruptFileError, match=r"store\.json.*by hand.*format_version"):
            act(layout.root)
    assert layout.marker.lstat().st_ino == before


def test_a_link_to_missing_bars_is_not_quarantined(filled: StoreLayout, make: Any) -> None:
    """Their disk may be mounted later: a repair changes nothing."""
    put(filled.bars, "link to nothing")
    layout = open_store(filled.root)
    with pytest.raises(OddPathError, match=r"bars.*[Mm]ount"):
        repair(layout, instruments(make), NOW)
    assert filled.bars.is_symlink()
    assert len(open_ledger(layout).files.names()) == 2


@pytest.mark.parametrize("name", ["bars", "state", "epochs", "bars/symbol=AAPL", M1])
def test_folders_may_be_links_to_another_place(filled: StoreLayout, make: Any, name: str) -> None:
    """Parts of a store, or all of it, may lie elsewhere."""
    folder = filled.root / name
    elsewhere = outside(filled.marker) / "moved"
    shutil.move(folder, elsewhere)
    folder.symlink_to(elsewhere)
    alias = filled.root.with_name("alias")
    alias.symlink_to(filled.root)
    layout = open_store(alias)
    assert repair(layout, instruments(make), NOW).quarantined == ()
    series = make.series()
    store = BarStore(layout, open_ledger(layout))
    make.save(store, series, make.run(series, OPEN, 20))
    assert BarStore(filled, open_ledger(filled)).rows(series) == 20
    assert folder.is_symlink()


@pytest.mark.parametrize(
    ("name", "is_other_store"), [("bars/symbol=AAPL", False), (M1, False), (M1, True)]
)
def test_a_link_into_a_store_is_no_folder_of_bars(
    filled: StoreLayout, make: Any, tmp_path: Path, name: str, is_other_store: bool
) -> None:
    """Files of another series or store are not changed through a link to them."""
    root = tmp_path / "copy" if is_other_store else filled.root
    if is_other_store:
        shutil.copytree(filled.root, root)
    target = root / name.replace("AAPL", "MSFT")
    folder = filled.root / name
    shutil.rmtree(folder)
    folder.symlink_to(target)
    before = {path: path.stat().st_ino for path in target.rglob("*")}
    series = make.series()
    layout = open_store(filled.root)
    store = BarStore(layout, open_ledger(layout))
    with pytest.raises(OddPathError, match="inside a store"):
        make.save(store, series, make.run(series, OPEN, 20))
    (item,) = repair(layout, instruments(make), NOW).quarantined
    assert item.was == folder
    assert item.now.is_symlink()
    assert {path: path.stat().st_ino for path in target.rglob("*")} == before


@pytest.mark.on_disk
def test_damage_of_bars_on_another_disk_is_quarantined(
    layout: StoreLayout, store: BarStore, make: Any
) -> None:
    """Files that cannot be renamed into quarantine are copied and then removed."""
    shared = Path("/dev/shm")  # noqa: S108  (another disk than that of temporary folders)
    if not shared.is_dir() or shared.stat().st_dev == layout.root.stat().st_dev:
        pytest.skip("there is only one disk")
    elsewhere = shared / f"ktrdr-test-{os.getpid()}"
    shutil.move(layout.bars, elsewhere)
    try:
        layout.bars.symlink_to(elsewhere)
        layout = open_store(layout.root)
        path = layout.series_folder("AAPL", Timeframe.M1) / "2024.parquet"
        put(path, "file")
        link = path.with_name("2023.parquet")
        put(link, "loop")
        report = repair(layout, instruments(make), NOW)
        assert {one.was for one in report.quarantined} == {path, link}
        assert report.quarantined[-1].now.read_text() == PRECIOUS
        assert report.quarantined[0].now.readlink() == Path("2023.parquet")
        assert list(path.parent.iterdir()) == []
    finally:
        shutil.rmtree(elsewhere)


def test_a_quarantined_file_with_the_name_of_a_folder_blocks_nothing(layout: StoreLayout) -> None:
    """Files of that folder are quarantined beside it."""
    folder = layout.bars / "symbol=AAPL"
    put(folder, "file")
    first = quarantine(layout, folder, "odd", "nothing")
    put(folder / "timeframe=1m", "file")
    second = quarantine(layout, folder / "timeframe=1m", "odd", "nothing")
    assert first.now.read_text() == second.now.read_text() == PRECIOUS
    assert second.now.is_relative_to(layout.quarantine)


@pytest.mark.parametrize(
    "name", [b"symbol=", b"symbol=A B", b"symbol=\xff", b"symbol=" + b"A" * 99]
)
def test_folders_whose_names_are_no_symbols_hold_no_series(
    filled: StoreLayout, make: Any, name: bytes
) -> None:
    """Their files are quarantined under their names."""
    folder = filled.bars / os.fsdecode(name) / "timeframe=1m"
    folder.mkdir(parents=True)
    source = filled.root / M1 / "2024.parquet"
    shutil.copy(source, folder / "2024.parquet")
    store = BarStore(filled, open_ledger(filled))
    assert [symbol for symbol, _ in store.series_on_disk()] == ["AAPL", "MSFT"]
    (item,) = repair(filled, instruments(make), NOW).quarantined
    assert item.was == folder / "2024.parquet"
    assert query_catalog(filled, "FROM bars").num_rows == 20


@pytest.mark.parametrize("kind", ["loop", "folder", "pipe"])
def test_an_odd_catalog_is_named(filled: StoreLayout, make: Any, kind: str) -> None:
    """A query does not wait for a pipe; the error hints at repair, which builds a catalog."""
    put(filled.catalog, kind)
    with pytest.raises(StoreError, match=r"ktrdr\.duckdb.*ktrdr repair"):
        query_catalog(filled, "FROM bars")
    repair(filled, instruments(make), NOW)
    assert query_catalog(filled, "FROM bars").num_rows == 20


def test_bars_of_another_store_are_refused(layout: StoreLayout, tmp_path: Path, make: Any) -> None:
    """A link to them would make their files belong to two stores."""
    other = create_store(tmp_path / "other")
    series = make.series()
    with closing(open_ledger(other)) as ledger:
        make.save(BarStore(other, ledger), series, make.run(series, OPEN, 5))
    layout.bars.rmdir()
    layout.bars.symlink_to(other.bars)
    with closing(open_ledger(layout)) as ledger, pytest.raises(OddPathError, match="inside a"):
        BarStore(layout, ledger).coverage(series)
