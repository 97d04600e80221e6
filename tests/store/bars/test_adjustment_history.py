"""The files of adjustments: read as written, and never taken for fewer than they are."""

import json
import os
from contextlib import closing
from dataclasses import replace
from datetime import UTC, date, datetime
from typing import Any

import pytest

from ktrdr_pipelines.domain.adjustments import AdjustmentKind
from ktrdr_pipelines.domain.bars import with_basis
from ktrdr_pipelines.domain.timeframes import Timeframe
from ktrdr_pipelines.errors import CorruptFileError, DiskError, OddPathError, StoreError
from ktrdr_pipelines.store.bars.adjustment_history import AdjustmentHistory
from ktrdr_pipelines.store.bars.bar_store import BarStore
from ktrdr_pipelines.store.layout import StoreLayout, open_store
from ktrdr_pipelines.store.ledger.ledger import Ledger

REMOVED = datetime(2024, 6, 5, 9, 30, 15, 123456, tzinfo=UTC)


@pytest.fixture
def history(layout: StoreLayout) -> AdjustmentHistory:
    """Return the files of a new store."""
    return AdjustmentHistory(layout)


def test_what_is_written_is_read(
    history: AdjustmentHistory, layout: StoreLayout, make: Any
) -> None:
    """Every field, to the bit and to the microsecond, by this object and by another one."""
    split = make.split(1, 1 / 7)
    manual = replace(
        make.split(2, 0.01, date(2024, 6, 4)),
        volume_ratio=1.0,
        kind=AdjustmentKind.MANUAL,
        is_estimated=True,
        note='pence: "GBX"\n— from June',
        removed_at=REMOVED,
    )
    history.write("BRK.B", [split, manual])
    assert history.of("BRK.B") == (split, manual)
    assert AdjustmentHistory(open_store(layout.root)).of("BRK.B") == (split, manual)
    assert history.of("BRK") == ()
    assert history.all() == ({"BRK.B": (split, manual)}, {})


def test_a_file_that_another_process_replaces_is_read_again(
    history: AdjustmentHistory, layout: StoreLayout, make: Any
) -> None:
    """Whoever wrote it, and however often it was read before."""
    other = AdjustmentHistory(layout)
    for count in (1, 2, 3):
        ones = [make.split(number, 0.5) for number in range(1, count + 1)]
        other.write("AAPL", ones)
        assert history.of("AAPL") == tuple(ones)
    other.remove("AAPL")
    assert history.of("AAPL") == ()


def damaged(change: Any, make: Any, layout: StoreLayout) -> None:
    """Write a file, then change its fields or its text."""
    history = AdjustmentHistory(layout)
    history.write("AAPL", [make.split(1, 0.25), make.split(2, 20.0)])
    path = layout.adjustments_file("AAPL")
    if isinstance(change, bytes):
        path.write_bytes(change)
        return
    fields = json.loads(path.read_text())
    change(fields)
    path.write_text(json.dumps(fields))


@pytest.mark.parametrize(
    "change",
    [
        b"",
        b"{",
        b"[" * 100_000,
        b"\xff\xfe",
        b"[]",
        b"null",
        lambda fields: fields.pop("adjustments"),
        lambda fields: fields.update(symbol="MSFT"),
        lambda fields: fields["adjustments"].pop(0),
        lambda fields: fields["adjustments"].reverse(),
        lambda fields: fields["adjustments"][0].update(number=None),
        lambda fields: fields["adjustments"][0].update(ratio=0),
        lambda fields: fields["adjustments"][0].update(ratio=float("nan")),
        lambda fields: fields["adjustments"][1].update(volume_ratio=-1.0),
        lambda fields: fields["adjustments"][1].update(kind="merger"),
        lambda fields: fields["adjustments"][1].update(effective="2024-06-31"),
        lambda fields: fields["adjustments"][1].update(found_at="2024-06-03T12:00:00"),
        lambda fields: fields["adjustments"][1].pop("evidence"),
    ],
)
def test_a_damaged_file_is_an_error_of_its_symbol_alone(
    history: AdjustmentHistory, layout: StoreLayout, make: Any, change: Any
) -> None:
    """It names the file, and is never taken for a file without adjustments."""
    damaged(change, make, layout)
    history.write("MSFT", [make.split(1, 0.5)])
    with pytest.raises(CorruptFileError, match=r"AAPL\.json.*ktrdr repair"):
        history.of("AAPL")
    known, unreadable = history.all()
    assert known == {"MSFT": (make.split(1, 0.5),)}
    assert unreadable.keys() == {"AAPL"}
    assert history.symbols() == ["AAPL", "MSFT"]


def test_a_file_of_a_newer_version_is_not_damaged(
    history: AdjustmentHistory, layout: StoreLayout, make: Any
) -> None:
    """The error says to use a newer program."""
    damaged(lambda fields: fields.update(format_version=2), make, layout)
    with pytest.raises(StoreError, match="newer ktrdr") as raised:
        history.of("AAPL")
    assert not isinstance(raised.value, CorruptFileError)


def as_link_to_nothing(layout: StoreLayout) -> None:
    """Make the file a link to a file that is not there, such as on another disk."""
    layout.adjustments_folder.mkdir(parents=True)
    layout.adjustments_file("AAPL").symlink_to("elsewhere.json")


def as_folder(layout: StoreLayout) -> None:
    """Put a folder in place of the file."""
    layout.adjustments_file("AAPL").mkdir(parents=True)


def as_history_file(layout: StoreLayout) -> None:
    """Put a file in place of the folder."""
    layout.history.write_text("")


@pytest.mark.parametrize("put", [as_link_to_nothing, as_folder, as_history_file])
def test_something_else_in_its_place_is_an_error(
    history: AdjustmentHistory, layout: StoreLayout, put: Any
) -> None:
    """It may hide adjustments."""
    put(layout)
    with pytest.raises(OddPathError):
        history.of("AAPL")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read_is_an_error(
    history: AdjustmentHistory, layout: StoreLayout, make: Any
) -> None:
    """Of the disk, as distinct from damage."""
    history.write("AAPL", [make.split(1, 0.25)])
    layout.adjustments_file("AAPL").chmod(0)
    with pytest.raises(DiskError):
        history.of("AAPL")


def test_unfinished_files_are_no_symbols(
    history: AdjustmentHistory, layout: StoreLayout, make: Any
) -> None:
    """A killed writer leaves one beside the file."""
    history.write("AAPL", [make.split(1, 0.25)])
    layout.adjustments_file(".AAPL.json.12-ab.tmp").with_suffix("").write_text("half")
    assert history.symbols() == ["AAPL"]


# --- what the ledger and the bars know ---------------------------------------------------------

OPEN = datetime(2024, 6, 3, 13, 30, tzinfo=UTC)


@pytest.fixture
def rebased(store: BarStore, make: Any) -> BarStore:
    """Return a store with bars of two bases, whose ledger has the split."""
    series = make.series()
    make.save(store, series, make.run(series, OPEN, 3, 100.0))
    store.bases.history.write("AAPL", [make.split(1, 0.25)])
    store.ledger.adjustments.record(store.bases.history.all()[0])
    make.save(store, series, make.run(series, OPEN.replace(hour=15), 3, 25.0))
    return store


@pytest.mark.parametrize("keeps_ledger", [True, False])
def test_lost_adjustments_are_noticed_by_the_ledger_or_the_bars(
    rebased: BarStore, make: Any, *, keeps_ledger: bool
) -> None:
    """Nothing is read, saved or adjusted as if there had been none; other symbols are as before."""
    series, other = make.series(), make.series(symbol="MSFT")
    rebased.layout.adjustments_file("AAPL").unlink()
    store = rebased
    if not keeps_ledger:
        rebased.ledger.close()
        rebased.layout.ledger.unlink()
        store = BarStore(rebased.layout, Ledger(rebased.layout.ledger))
        store.files.of(series)
    with closing(store.ledger):
        for act in (
            lambda: store.read(series),
            lambda: store.bases.on_todays("AAPL", store.read_raw(series)),
            lambda: make.save(store, series, make.run(series, OPEN.replace(hour=16), 3)),
        ):
            with pytest.raises(StoreError, match=r"AAPL\.json has 0 adjustments.*ktrdr repair"):
                act()
        assert store.read_raw(series).num_rows == 6
        make.save(store, other, make.run(other, OPEN, 3))
        assert store.read(other).num_rows == 3


def test_a_new_series_of_a_symbol_whose_adjustments_are_lost_is_not_saved(
    rebased: BarStore, make: Any
) -> None:
    """It would be on basis 0, and be multiplied once the file is back."""
    with rebased.ledger.database.writing() as connection:
        connection.execute("DELETE FROM adjustments")
    rebased.layout.adjustments_file("AAPL").unlink()
    hours = make.series(Timeframe.H1)
    with pytest.raises(StoreError, match="its bars include number 1"):
        make.save(rebased, hours, make.run(hours, OPEN, 2))


def test_bars_on_a_basis_that_is_not_known_are_not_saved(store: BarStore, make: Any) -> None:
    """The run that stamped them worked with adjustments that are gone."""
    series = make.series()
    bars = make.run(series, OPEN, 3)
    with pytest.raises(StoreError, match="these bars include number 2"):
        make.save(store, series, with_basis(bars, 2))
    assert store.rows(series) == 0
