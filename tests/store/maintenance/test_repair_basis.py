"""Repair keeps the adjustments of every symbol, and says where they are lost."""

import json
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pyarrow.parquet as pq
import pytest

from ktrdr_pipelines.domain.timeframes import Timeframe
from ktrdr_pipelines.errors import StoreError
from ktrdr_pipelines.store.bars.bar_store import BarStore, read_footer
from ktrdr_pipelines.store.catalog.catalog import query_catalog
from ktrdr_pipelines.store.layout import StoreLayout
from ktrdr_pipelines.store.ledger.ledger import Ledger
from ktrdr_pipelines.store.maintenance.repair import repair

NOW = datetime(2024, 6, 4, tzinfo=UTC)
OPEN = datetime(2024, 6, 3, 13, 30, tzinfo=UTC)


@pytest.fixture
def rebased(layout: StoreLayout, store: BarStore, make: Any) -> StoreLayout:
    """Return a store whose AAPL was split twice, with bars of the first two bases."""
    series = make.series()
    for number in range(2):
        make.save(store, series, make.run(series, OPEN + number * timedelta(hours=1), 3, 8.0))
        make.rebase(store, make.split(number + 1, 0.5))
    return layout


def closes(layout: StoreLayout, make: Any) -> list[float]:
    """Return the closes of AAPL as the store and a query read them."""
    with closing(Ledger(layout.ledger)) as ledger:
        read: list[float] = BarStore(layout, ledger).read(make.series())["close"].to_pylist()
    found = query_catalog(layout, "SELECT close FROM series('AAPL', '1m') ORDER BY ts")
    assert found["close"].to_pylist() == read
    return read


TRUE = [2.0] * 3 + [4.0] * 3


def test_a_lost_ledger_gets_its_index_from_the_files(rebased: StoreLayout, make: Any) -> None:
    """Nothing is missing afterwards."""
    rebased.ledger.unlink()
    report = repair(rebased, [make.instrument()], NOW)
    assert (report.restored, report.lost, report.quarantined) == ((), (), ())
    with closing(Ledger(rebased.ledger)) as ledger:
        assert ledger.adjustments.of("AAPL") == (make.split(1, 0.5), make.split(2, 0.5))
    assert closes(rebased, make) == TRUE


@pytest.mark.parametrize("content", [b"{", b"", None])
def test_damaged_or_lost_adjustments_are_restored_from_the_ledger(
    rebased: StoreLayout, make: Any, content: bytes | None
) -> None:
    """What is damaged is kept in quarantine; the bars are read as before."""
    path = rebased.adjustments_file("AAPL")
    before = path.read_bytes()
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content)
    report = repair(rebased, [make.instrument()], NOW)
    assert (report.restored, report.lost) == ((path,), ())
    assert path.read_bytes() == before
    assert [one.was for one in report.quarantined] == ([] if content is None else [path])
    assert [one.now.read_bytes() for one in report.quarantined] == [content] * (content is not None)
    assert closes(rebased, make) == TRUE
    assert repair(rebased, [make.instrument()], NOW).restored == ()


def test_adjustments_put_back_from_an_older_backup_are_completed(
    rebased: StoreLayout, make: Any
) -> None:
    """The older ones are the same as the ledger's."""
    path = rebased.adjustments_file("AAPL")
    before = path.read_bytes()
    fields = json.loads(before)
    del fields["adjustments"][1]
    path.write_text(json.dumps(fields))
    with pytest.raises(StoreError, match="the ledger has 2"):
        closes(rebased, make)
    assert repair(rebased, [make.instrument()], NOW).restored == (path,)
    assert path.read_bytes() == before
    assert closes(rebased, make) == TRUE


@pytest.mark.parametrize("loss", ["both", "of other adjustments"])
def test_what_cannot_be_restored_is_named_and_stays(
    rebased: StoreLayout, make: Any, loss: str
) -> None:
    """No query serves the symbol; others are served, and the file can be put back by hand."""
    path = rebased.adjustments_file("AAPL")
    before = path.read_bytes()
    if loss == "both":
        rebased.ledger.unlink()
        path.write_bytes(b"{")
    else:
        fields = json.loads(before)
        del fields["adjustments"][1]
        fields["adjustments"][0]["ratio"] = 0.25
        path.write_text(json.dumps(fields))
    broken = path.read_bytes()
    report = repair(rebased, [make.instrument()], NOW)
    assert (report.restored, report.quarantined, report.quarantined_ledger) == ((), (), None)
    (text,) = report.lost
    assert text.startswith("AAPL: ")
    assert str(path) in text
    assert path.read_bytes() == broken
    with pytest.raises(StoreError, match=r"AAPL\.json"):
        query_catalog(rebased, "FROM series('AAPL', '1m')")
    assert query_catalog(rebased, "FROM raw_1m").num_rows == 6
    path.write_bytes(before)
    assert repair(rebased, [make.instrument()], NOW).lost == ()
    assert closes(rebased, make) == TRUE


def test_bars_that_include_more_than_all_records_are_named(rebased: StoreLayout, make: Any) -> None:
    """Where file and ledger are lost together."""
    rebased.ledger.unlink()
    rebased.adjustments_file("AAPL").unlink()
    (text,) = repair(rebased, [make.instrument()], NOW).lost
    assert "has 0 adjustments of 1" in text
    with pytest.raises(StoreError, match=r"AAPL\.json"):
        query_catalog(rebased, "FROM series('AAPL', '1m')")


def test_adjustments_of_a_newer_version_stay(rebased: StoreLayout, make: Any) -> None:
    """They are not damaged."""
    path = rebased.adjustments_file("AAPL")
    text = path.read_text().replace('"format_version": 1', '"format_version": 2')
    path.write_text(text)
    report = repair(rebased, [make.instrument()], NOW)
    assert (report.restored, report.quarantined, len(report.lost)) == ((), (), 1)
    assert path.read_text() == text


def test_an_unfinished_file_of_adjustments_is_removed(rebased: StoreLayout, make: Any) -> None:
    """A killed process leaves one; files of other names stay."""
    folder = rebased.adjustments_folder
    left, other = folder / ".AAPL.json.12-ab.tmp", folder / "notes.txt"
    left.write_text("half")
    other.write_text("mine")
    assert repair(rebased, [make.instrument()], NOW).leftovers == (left,)
    assert not left.exists()
    assert other.exists()


def test_removal_is_kept(rebased: StoreLayout, make: Any) -> None:
    """An adjustment that a person undid stays undone when its record is restored."""
    with closing(Ledger(rebased.ledger)) as ledger:
        store = BarStore(rebased, ledger)
        undone = replace(make.split(2, 0.5), removed_at=NOW)
        store.bases.history.write("AAPL", [make.split(1, 0.5), undone])
        ledger.adjustments.record(store.bases.history.all()[0])
    rebased.adjustments_file("AAPL").unlink()
    repair(rebased, [make.instrument()], NOW)
    assert closes(rebased, make) == [4.0] * 3 + [8.0] * 3


@pytest.mark.parametrize("is_sealed", [True, False])
def test_a_file_that_lost_the_basis_of_its_bars_gets_it_back(
    rebased: StoreLayout, make: Any, *, is_sealed: bool
) -> None:
    """By its footer, with or without digests."""
    (path,) = rebased.bar_files("AAPL", Timeframe.M1)
    with pq.ParquetFile(path) as file:
        metadata, table = file.metadata.metadata, file.read().drop_columns(["basis"])
    if not is_sealed:
        fields = json.loads(metadata[b"ktrdr"])
        del fields["seal"], fields["digests"]
        metadata = {b"ktrdr": json.dumps(fields).encode()}
        rebased.ledger.unlink()
    pq.write_table(table.replace_schema_metadata(metadata), path)
    report = repair(rebased, [make.instrument()], NOW)
    assert (report.fixed, report.quarantined) == ((path,), ())
    assert "basis" in pq.read_schema(path).names
    assert [number for _, number in read_footer(path).basis.intervals] == [0, 1]
    assert closes(rebased, make) == TRUE
