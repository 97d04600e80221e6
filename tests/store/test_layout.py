"""The folder of a store, its marker, and its origin, which is set once."""

import json
from pathlib import Path

import pytest

from ktrdr_pipelines.domain.instruments import Origin
from ktrdr_pipelines.domain.timeframes import Timeframe
from ktrdr_pipelines.errors import (
    CorruptFileError,
    DiskError,
    ForeignIdentityError,
    NoStoreError,
)
from ktrdr_pipelines.store.layout import (
    StoreLayout,
    create_store,
    open_store,
    pin_origin,
    store_origin,
)


def test_creating_twice_keeps_the_store(tmp_path: Path) -> None:
    """A folder that is a store already stays as it is."""
    first = create_store(tmp_path / "data", Origin.IB)
    first.universe.write_text("symbols: {}\n")
    second = create_store(tmp_path / "data")
    assert second == first
    assert store_origin(second) is Origin.IB
    assert second.universe.read_text() == "symbols: {}\n"
    assert sorted(path.name for path in second.root.iterdir()) == [
        "bars",
        "epochs",
        "state",
        "store.json",
        "universe.yaml",
    ]


def test_a_folder_without_a_marker_is_no_store(tmp_path: Path) -> None:
    """The error names the folder and the way to make it a store."""
    with pytest.raises(NoStoreError, match=r"is not a store.*ktrdr init") as caught:
        open_store(tmp_path)
    assert str(tmp_path) in str(caught.value)


def test_a_folder_with_stores_below_it_names_them(tmp_path: Path) -> None:
    """After a demo, its store is what a newcomer looks for."""
    for name in ("simulated", "demo"):
        create_store(tmp_path / name)
    (tmp_path / "other").mkdir()
    with pytest.raises(NoStoreError) as caught:
        open_store(tmp_path)
    assert str(caught.value).endswith(
        f"KTRDR_DATA, such as {tmp_path / 'demo'} or {tmp_path / 'simulated'}"
    )


def test_a_newer_store_is_refused(layout: StoreLayout) -> None:
    """A store of a newer version is neither opened nor changed."""
    layout.marker.write_text(json.dumps({"format_version": 3, "origin": None}))
    with pytest.raises(NoStoreError, match=r"version 3.*up to 2"):
        open_store(layout.root)
    with pytest.raises(NoStoreError):
        create_store(layout.root)


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", '{"format_version": 1}', '{"origin": "x"}', '{"format_version": 1e999}'],
)
def test_an_invalid_marker_is_an_error(layout: StoreLayout, text: str) -> None:
    """The error shows what a marker should look like."""
    layout.marker.write_text(text)
    with pytest.raises(CorruptFileError, match=r"format_version"):
        open_store(layout.root)


def test_an_origin_is_pinned_once(layout: StoreLayout) -> None:
    """The first bars set the origin; others are refused with a hint."""
    assert store_origin(layout) is None
    pin_origin(layout, Origin.SIMULATED)
    pin_origin(layout, Origin.SIMULATED)
    assert store_origin(layout) is Origin.SIMULATED
    with pytest.raises(
        ForeignIdentityError, match=r"save ib bars.*holds simulated.*ktrdr init.*KTRDR_DATA"
    ):
        pin_origin(layout, Origin.IB)
    assert store_origin(layout) is Origin.SIMULATED


def test_creating_with_an_origin_pins_it(layout: StoreLayout) -> None:
    """A store without origin takes the one given when it is created again."""
    create_store(layout.root, Origin.IMPORT)
    assert store_origin(layout) is Origin.IMPORT
    with pytest.raises(ForeignIdentityError):
        create_store(layout.root, Origin.IB)


def test_a_folder_that_cannot_be_made_is_a_disk_error(tmp_path: Path) -> None:
    """A path through a file cannot become a store; the error names it."""
    (tmp_path / "file").write_text("")
    with pytest.raises(DiskError, match=r"file/data"):
        create_store(tmp_path / "file" / "data")


def test_nothing_unfinished_is_left(layout: StoreLayout) -> None:
    """Writing the marker leaves no temporary file."""
    pin_origin(layout, Origin.IB)
    assert [path for path in layout.root.iterdir() if path.name.startswith(".")] == []


def test_a_symbol_folder_that_is_a_circle_of_links_has_no_timeframes(tmp_path: Path) -> None:
    """What walks the folders strictly names it; what lists the series goes on with the others."""
    layout = create_store(tmp_path / "data")
    layout.series_folder("MSFT", Timeframe.D1).mkdir(parents=True)
    layout.symbol_folder("AAPL").symlink_to(layout.symbol_folder("AAPL").name)
    assert layout.timeframes_of("AAPL") == []
    assert list(layout.series_folders()) == [("MSFT", Timeframe.D1)]
