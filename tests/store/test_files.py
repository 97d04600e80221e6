"""What lies at a path, found out without opening it."""

from pathlib import Path

import pytest

from ktrdr_pipelines.errors import OddPathError
from ktrdr_pipelines.store.files import (
    bar_file_oddity,
    is_folder,
    is_link_to_nothing,
    is_regular,
    is_series_folder,
    kind_of,
    require_file,
)
from ktrdr_pipelines.store.layout import StoreLayout
from tests.support.oddities import MAKERS, put

REGULAR = {"file", "link to file"}
FOLDERS = {"folder", "link to folder"}


@pytest.mark.parametrize("kind", MAKERS)
def test_what_lies_at_a_path_is_recognized(layout: StoreLayout, kind: str) -> None:
    """Links count as their targets, except in place of a bar file."""
    path = layout.bars / "symbol=AAPL"
    put(path, kind)
    assert kind_of(path) not in {None, "something unknown"}
    assert is_regular(path) is (kind in REGULAR)
    assert is_folder(path) is (kind in FOLDERS)
    assert is_series_folder(path) is (kind in FOLDERS)
    assert is_link_to_nothing(path) is (kind == "link to nothing")
    assert (bar_file_oddity(path) is None) is (kind == "file")
    if kind in REGULAR:
        assert require_file(path)
    else:
        with pytest.raises(OddPathError, match=r"symbol=AAPL.*ktrdr repair"):
            require_file(path)


def test_nothing_lies_at_an_unused_path(layout: StoreLayout) -> None:
    """It may become a bar file, and is neither a file nor a folder."""
    for path in (layout.bars / "new", layout.marker / "below a file"):
        assert kind_of(path) is None
        assert bar_file_oddity(path) is None
        assert not any(is_kind(path) for is_kind in (is_regular, is_folder, is_link_to_nothing))
        assert not require_file(path)


@pytest.mark.parametrize("is_linked", [False, True])
def test_a_link_into_a_store_is_no_series_folder(
    layout: StoreLayout, tmp_path: Path, *, is_linked: bool
) -> None:
    """Its files would belong to two series, even where the bars lie outside the store's folder."""
    if is_linked:
        layout.bars.rename(tmp_path / "elsewhere")
        layout.bars.symlink_to(tmp_path / "elsewhere")
    series = layout.bars / "symbol=MSFT"
    series.mkdir()
    link = layout.bars / "symbol=AAPL"
    link.symlink_to(series)
    assert is_folder(link)
    assert not is_series_folder(link)


def test_a_link_to_a_folder_outside_is_a_series_folder(layout: StoreLayout, tmp_path: Path) -> None:
    """Bars may lie on another disk."""
    link = layout.bars / "symbol=AAPL"
    link.symlink_to(tmp_path)
    assert is_series_folder(link)
