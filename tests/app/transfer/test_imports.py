"""Imported files become bars of the store of imported bars, or are named with the reason."""

import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import ktrdr_pipelines
from ktrdr_pipelines.app.transfer.imports import ImportedFile, ImportOptions, import_files
from ktrdr_pipelines.app.transfer.mapping import MAPPING_EXAMPLE, read_mapping
from ktrdr_pipelines.app.workspace import Workspace
from ktrdr_pipelines.errors import UsageError
from ktrdr_pipelines.settings import effective_settings
from ktrdr_pipelines.store.bars.bar_store import BarStore
from ktrdr_pipelines.store.layout import open_store
from ktrdr_pipelines.store.ledger.file_index import fingerprint
from ktrdr_pipelines.store.ledger.ledger import Ledger
from tests.support.readable import NOW, ReadableStore

HEADER = "date,open,high,low,close,volume\n"
DAYS = f"{HEADER}2024-01-02,1,2,0.5,1.5,10\n2024-01-03,1,2,0.5,1.6,10\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder for files to import."""
    path = tmp_path / "files"
    path.mkdir()
    return path


def run(store: ReadableStore, source: Path, **options: Any) -> dict[str, ImportedFile]:
    """Import, and return the outcome of each file by its name."""
    settings = effective_settings(flags={"ktrdr_data": store.root})
    workspace = Workspace(settings, open_store(store.root), real=lambda: NOW)
    return {one.name: one for one in import_files(workspace, ImportOptions(source, **options))}


def closes(store: ReadableStore, symbol: str = "AAPL", timeframe: str = "1d") -> list[float]:
    """Return the imported closes."""
    frame = store.open().read_bars(symbol, timeframe, origin="import")
    return [float(one) for one in frame["close"]]


def test_importing_again_changes_nothing(readable: ReadableStore, folder: Path) -> None:
    """More bars are added; other values need ``replace``, and the older are kept as revisions."""
    file = folder / "AAPL_1d.csv"
    file.write_text(DAYS)
    first = run(readable, folder)["AAPL_1d.csv"]
    assert (first.rows, first.added, first.unchanged, first.is_complete) == (2, 2, 0, True)
    path = readable.root / "imported/bars/symbol=AAPL/timeframe=1d/all.parquet"
    before = fingerprint(path)
    again = run(readable, folder)["AAPL_1d.csv"]
    assert (again.added, again.changed, again.unchanged) == (0, 0, 2)
    assert fingerprint(path) == before
    file.write_text(f"{DAYS.replace('1.6', '1.7')}2024-01-04,1,2,0.5,1.9,10\n")
    refused = run(readable, folder)["AAPL_1d.csv"]
    assert not refused.is_complete
    assert "1 bars were imported before with other values" in str(refused.error)
    assert "--replace" in str(refused.error)
    assert closes(readable) == [1.5, 1.6]
    done = run(readable, folder, replace=True)["AAPL_1d.csv"]
    assert (done.added, done.changed, done.unchanged, done.is_complete) == (1, 1, 1, True)
    assert closes(readable) == [1.5, 1.7, 1.9]
    with closing(Ledger(open_store(readable.root).imported / "state/ledger.sqlite")) as ledger:
        assert len(ledger.revisions.of("AAPL|1d")) == 1


def test_of_two_imports_at_once_one_finds_the_bars_of_the_other(
    readable: ReadableStore, folder: Path
) -> None:
    """Neither replaces bars without being asked to."""
    names = []
    for number in range(4):
        (folder / str(number)).mkdir()
        names.append(folder / str(number) / "AAPL_1d.csv")
        names[-1].write_text(DAYS.replace("1.6", f"1.6{number}"))
    with ThreadPoolExecutor(len(names)) as pool:
        found = [one["AAPL_1d.csv"] for one in pool.map(partial(run, readable), names)]
    assert sorted(one.added for one in found) == [0, 0, 0, 2]
    assert [one.changed for one in found] == [0, 0, 0, 0]
    assert all("--replace" in str(one.error) for one in found if not one.added)


def test_symbols_that_the_universe_lacks_are_told_at_once(
    readable: ReadableStore, folder: Path
) -> None:
    """With the command that adds all; the other files are imported."""
    for name in ("AAPL_1d", "XXX_1d", "YYY_1d", "aapl.eth_1D", "notes", "MSFT_3d"):
        (folder / f"{name}.csv").write_text(DAYS)
    (folder / "README.txt").write_text("not a table")
    found = run(readable, folder)
    assert sorted(name for name, one in found.items() if one.is_complete) == [
        *("AAPL_1d.csv", "aapl.eth_1D.csv"),
    ]
    for name in ("XXX_1d.csv", "YYY_1d.csv"):
        assert "`ktrdr universe add XXX,YYY`" in str(found[name].error)
    assert "AAPL_1h.csv" in str(found["notes.csv"].error)
    assert "timeframe '3d'" in str(found["MSFT_3d.csv"].error)
    assert len(found) == 6
    assert closes(readable, "AAPL.ETH") == [1.5, 1.6]


def test_bad_rows_are_left_out_or_keep_the_file_out(readable: ReadableStore, folder: Path) -> None:
    """As asked for; no store is made for nothing."""
    (folder / "AAPL_1d.csv").write_text(f"{DAYS}2024-01-04,1,0,0.5,1,1\n")
    strict = run(readable, folder, strict=True)["AAPL_1d.csv"]
    assert "1 of 3 rows are no bars" in str(strict.error)
    assert [one.line for one in strict.bad] == [4]
    assert not (readable.root / "imported").exists()
    found = run(readable, folder)["AAPL_1d.csv"]
    assert (found.added, len(found.bad), found.error, found.is_complete) == (2, 1, None, False)


def test_two_files_of_one_series_are_refused(readable: ReadableStore, folder: Path) -> None:
    """It is not known which one counts."""
    (folder / "more").mkdir()
    for name in ("AAPL_1d.csv", "more/AAPL_1d.csv"):
        (folder / name).write_text(DAYS)
    found = run(readable, folder)
    assert all("several files are of AAPL 1d" in str(one.error) for one in found.values())
    assert run(readable, folder / "more" / "AAPL_1d.csv")["AAPL_1d.csv"].is_complete


def test_what_is_no_file_is_named_and_links_are_followed(
    readable: ReadableStore, folder: Path, tmp_path: Path
) -> None:
    """A file that is missed by accident would look like one that was imported."""
    other = tmp_path / "other"
    other.mkdir()
    (other / "EURUSD_1d.csv").write_text(DAYS)
    (folder / "AAPL_1d.csv").symlink_to("nowhere")
    os.mkfifo(folder / "MSFT_1d.csv")
    (folder / "linked").symlink_to(other)
    (folder / "loop").symlink_to(folder)
    found = run(readable, folder)
    assert "it is a link to nowhere" in str(found["AAPL_1d.csv"].error)
    assert "it is a named pipe" in str(found["MSFT_1d.csv"].error)
    assert found["linked/EURUSD_1d.csv"].added == 2
    assert len(found) == 3


def test_times_need_a_zone_and_text_an_encoding(readable: ReadableStore, folder: Path) -> None:
    """The error names file and line, and what to state."""
    (folder / "AAPL_1h.csv").write_text(f"{HEADER}2024-01-02 09:30,1,2,0.5,1.5,10\n")
    (folder / "MSFT_1d.csv").write_bytes(b"\xff\xfe\x00")
    found = run(readable, folder)
    assert "AAPL_1h.csv, line 2" in str(found["AAPL_1h.csv"].error)
    assert "--timezone America/New_York" in str(found["AAPL_1h.csv"].error)
    assert "not UTF-8" in str(found["MSFT_1d.csv"].error)
    stated = run(readable, folder, zone="America/New_York")["AAPL_1h.csv"]
    assert stated.first == datetime(2024, 1, 2, 14, 30, tzinfo=UTC)


def test_a_mapping_states_other_names_and_shapes(
    readable: ReadableStore, folder: Path, tmp_path: Path
) -> None:
    """The first pattern that matches counts; names without one are read as usual."""
    mapping = tmp_path / "mapping.yaml"
    mapping.write_text(
        '"{symbol}-{timeframe}.txt":\n  timezone: America/New_York\n  timestamp: end\n'
        '  delimiter: ";"\n  symbols: {APPLE: AAPL}\n  timeframes: {H1: 1h}\n'
        "  header: time,open,high,low,close,volume\n"
        '"days/*.csv": {symbol: MSFT, timeframe: 1d, columns: {time: Day}}\n'
    )
    (folder / "days").mkdir()
    (folder / "APPLE-H1.txt").write_text("2024-01-02 10:00;1;2;0.5;1.5;10\n")
    (folder / "days" / "all.csv").write_text(DAYS.replace("date", "Day"))
    (folder / "AAPL_1d.csv").write_text(DAYS)
    found = run(readable, folder, mapping=mapping)
    assert {name: str(one.error) for name, one in found.items() if not one.is_complete} == {}
    assert found["APPLE-H1.txt"].first == datetime(2024, 1, 2, 14, 30, tzinfo=UTC)
    assert found["days/all.csv"].symbol == "MSFT"
    page = Path(ktrdr_pipelines.__file__).parent / "docs" / "files.md"
    assert f"```yaml\n{MAPPING_EXAMPLE}```" in page.read_text()
    mapping.write_text(MAPPING_EXAMPLE)
    assert [one.pattern for one in read_mapping(mapping, None)] == [
        *("{symbol}-{timeframe}.txt", "daily/*.csv", "{symbol}_{timeframe}.csv"),
    ]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "is empty"),
        ("a: [", "line 1"),
        ('"x.csv": {timeframe: 1d}', "names no symbol"),
        ('"{symbol}.csv": {symbol: A, timeframe: 1d}', "names no symbol, or several"),
        ('"{symbol}.csv": {timeframe: 2d}', "Allowed are 1m"),
        ('"{symbol}.csv": {timeframe: 1d, zone: UTC}', "not a known key"),
        ('"{symbol}.csv":\n  timeframe: 1d\n  timezone: Mars', "line 3.*no such time zone"),
        ('"{symbol}.csv": {timeframe: 1d, timestamp: middle}', "Allowed are start, end"),
        ('"{symbol}.csv": {timeframe: 1d, columns: {date: x}}', "not a known key"),
    ],
)
def test_a_wrong_mapping_names_line_and_key(
    readable: ReadableStore, folder: Path, tmp_path: Path, *, text: str, said: str
) -> None:
    """Before anything is imported."""
    (folder / "AAPL_1d.csv").write_text(DAYS)
    mapping = tmp_path / "mapping.yaml"
    mapping.write_text(text)
    with pytest.raises(UsageError, match=said):
        run(readable, folder, mapping=mapping)
    assert not (readable.root / "imported").exists()


def test_no_file_is_an_error(readable: ReadableStore, folder: Path) -> None:
    """So is a folder that does not exist, and an unknown zone."""
    with pytest.raises(UsageError, match=r"no file named like AAPL_1h\.csv"):
        run(readable, folder)
    with pytest.raises(UsageError, match="no such folder"):
        run(readable, folder / "nowhere")
    with pytest.raises(UsageError, match="no such time zone"):
        run(readable, folder, zone="Mars")


def test_bars_of_another_instrument_are_not_mixed(readable: ReadableStore, folder: Path) -> None:
    """An entry that has become another instrument since keeps its imported bars apart."""
    (folder / "AAPL_1d.csv").write_text(DAYS)
    run(readable, folder)
    universe = readable.root / "universe.yaml"
    universe.write_text(universe.read_text().replace("AAPL: {}", "AAPL: {use_rth: false}"))
    (folder / "AAPL_1d.csv").write_text(f"{DAYS}2024-01-04,1,2,0.5,1.5,10\n")
    assert "cannot save bars of AAPL 1d" in str(run(readable, folder)["AAPL_1d.csv"].error)
    layout = open_store(readable.root / "imported")
    with closing(Ledger(layout.ledger)) as ledger:
        assert BarStore(layout, ledger).rows(readable.series("AAPL", "1d")) == 2
