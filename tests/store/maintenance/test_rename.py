"""Renaming and retiring symbols: complete, or completed after a kill."""

import shutil
import subprocess
import sys
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from ktrdr_pipelines.domain.intervals import Interval
from ktrdr_pipelines.domain.timeframes import Timeframe
from ktrdr_pipelines.errors import (
    CorruptFileError,
    StoreError,
    UniverseError,
    UnknownSymbolError,
)
from ktrdr_pipelines.store.bars.adjustment_history import AdjustmentHistory
from ktrdr_pipelines.store.bars.bar_store import BarStore
from ktrdr_pipelines.store.catalog.catalog import query_catalog, rebuild_catalog
from ktrdr_pipelines.store.claim_owners import claiming
from ktrdr_pipelines.store.layout import StoreLayout, create_store, open_store, store_version
from ktrdr_pipelines.store.ledger.basis_records import BasisCheck
from ktrdr_pipelines.store.ledger.ledger import Ledger
from ktrdr_pipelines.store.ledger.request_audit import RequestRecord
from ktrdr_pipelines.store.maintenance.rename import finish_move, rename, retire
from ktrdr_pipelines.store.maintenance.rename_journal import (
    Move,
    MoveKind,
    pending_move,
    write_journal,
)
from ktrdr_pipelines.store.maintenance.repair import repair
from ktrdr_pipelines.store.maintenance.restore import restore
from ktrdr_pipelines.store.universe_file import load_universe
from tests.store.conftest import Make

NOW = datetime(2024, 6, 4, tzinfo=UTC)
FIRST = datetime(2024, 6, 3, 13, 30, tzinfo=UTC)
UNIVERSE = "# mine\nsymbols:\n  AAPL: {}  # the first\n  MSFT: {}\n"
SPLIT = Make().split(1, 0.25)
KILLED_RENAME = Path(__file__).with_name("killed_rename.py")


@pytest.fixture
def filled(layout: StoreLayout, store: BarStore, make: Any) -> StoreLayout:
    """Return a store with bars of AAPL in files of two timeframes, and ledger rows about it."""
    layout.universe.write_text(UNIVERSE)
    fill(layout, store, make)
    return layout


def fill(layout: StoreLayout, store: BarStore, make: Any) -> None:
    """Save bars of AAPL and MSFT, and record rows about AAPL in the ledger.

    AAPL is split after its first bars.
    """
    ledger = store.ledger
    for symbol in ("AAPL", "MSFT"):
        minutes, days = make.series(Timeframe.M1, symbol), make.series(Timeframe.D1, symbol)
        make.save(store, minutes, make.run(minutes, FIRST, 20))
        make.save(store, minutes, make.run(minutes, FIRST - timedelta(days=200), 5))
        make.save(store, days, make.bars(days, [datetime(2024, 6, 3, tzinfo=UTC)]))
    make.save(store, minutes := make.series(Timeframe.M1), make.run(minutes, FIRST, 3, 2.0))
    make.rebase(store, SPLIT)
    make.save(store, minutes, make.run(minutes, FIRST + timedelta(hours=1), 3, 0.25))
    ledger.basis_checks.change("AAPL", lambda known: replace(known, basis=1, confirmed_at=NOW))
    ledger.contracts.pin("AAPL", make.identity(minutes).origin, 265598, "AAPL, a stock", NOW)
    ledger.attempts.record(
        "AAPL|1m",
        Interval(FIRST, FIRST + timedelta(hours=1)),
        "error",
        error="no answer",
        code=None,
        next_try_at=None,
        at=NOW,
    )
    ledger.requests.record(
        RequestRecord(
            series="AAPL|1m",
            contract_id=265598,
            what_to_show="TRADES",
            gateway="here:1",
            login="",
            asked_end=None,
            duration="1 D",
            sent_at=NOW,
            took_s=0.1,
            outcome="bars",
            rows=20,
        )
    )


def records_of(layout: StoreLayout, symbol: str) -> dict[str, Any]:
    """Return everything that a store records about a symbol."""
    with closing(Ledger(layout.ledger)) as ledger:
        store = BarStore(layout, ledger)
        files = {
            path.name: (row.rows, row.coverage, row.rows_per_session)
            for timeframe in Timeframe
            for path, row in store.files.of_symbol(symbol, timeframe).items()
        }
        identities = {
            row.identity.symbol
            for timeframe in Timeframe
            for row in store.files.of_symbol(symbol, timeframe).values()
        }
        tables = {
            "requests": ledger.requests.count(f"{symbol}|1m"),
            "attempts": len(ledger.attempts.of(f"{symbol}|1m")),
            "revisions": len(ledger.revisions.of(f"{symbol}|1m")),
            "fresh_from": ledger.kept_fresh.all().get(f"{symbol}|1m"),
        }
        basis = {
            "adjustments": store.bases.history.of(symbol),
            "index": ledger.adjustments.of(symbol),
            "check": ledger.basis_checks.of(symbol),
            "closes": store.read(Make().series(symbol=symbol))["close"].to_pylist(),
        }
    return {"files": files, "identities": identities} | tables | basis


def assert_renamed(layout: StoreLayout, before: dict[str, Any]) -> None:
    """Assert that APPL2 has all that AAPL had, that AAPL has nothing, and the rest is as it was."""
    after = records_of(layout, "APPL2")
    assert after == before | {"identities": {"APPL2"}}
    assert records_of(layout, "AAPL") == {
        "files": {},
        "identities": set(),
        "requests": 0,
        "attempts": 0,
        "revisions": 0,
        "fresh_from": None,
        "adjustments": (),
        "index": (),
        "check": BasisCheck(),
        "closes": [],
    }
    assert records_of(layout, "MSFT")["files"]
    assert AdjustmentHistory(layout).symbols() == ["APPL2"]
    universe = load_universe(layout.universe)
    assert list(universe.instruments) == ["APPL2", "MSFT"]
    assert universe.instrument("APPL2").ib_symbol == "AAPL"
    assert pending_move(layout) is None
    assert list(layout.epochs.iterdir()) == []
    assert not layout.symbol_folder("AAPL").exists()


def test_rename_moves_files_footers_ledger_and_universe(filled: StoreLayout) -> None:
    """The new symbol has every bar, coverage, attempt, audit row and revision of the old one."""
    before = records_of(filled, "AAPL")
    assert before["attempts"] == before["requests"] == 1
    assert before["revisions"] == 3
    assert before["fresh_from"] == FIRST + timedelta(minutes=20)
    assert before["adjustments"] == before["index"] == (SPLIT,)
    assert before["closes"] == [0.25] * 5 + [0.5] * 3 + [0.25] * 17 + [0.25] * 3
    rename(filled, "AAPL", "APPL2", NOW)
    assert_renamed(filled, before)
    assert filled.universe.read_text() == UNIVERSE.replace("AAPL: {}", "APPL2: {symbol: AAPL}")


def test_no_table_of_the_ledger_has_the_old_symbol(filled: StoreLayout) -> None:
    """In all tables: no value of any row is the old symbol or a series of it."""
    rename(filled, "AAPL", "APPL2", NOW)
    ledger = Ledger(filled.ledger)
    with closing(ledger), ledger.database.reading() as connection:
        tables = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
        for (table,) in tables.fetchall():
            for row in connection.execute(f"SELECT * FROM {table}"):  # noqa: S608
                assert not [v for v in row if v == "AAPL" or str(v).startswith("AAPL|")], table


def test_renamed_store_passes_a_repair_and_is_queried_by_its_new_name(filled: StoreLayout) -> None:
    """Nothing is quarantined, and the catalog has the bars once."""
    rename(filled, "AAPL", "APPL2", NOW)
    assert repair(filled, now=NOW).quarantined == ()
    instruments = list(load_universe(filled.universe).instruments.values())
    rebuild_catalog(filled, instruments, NOW)
    counts = query_catalog(filled, "SELECT symbol, count(*) FROM bars GROUP BY ALL ORDER BY ALL")
    assert counts.to_pydict()["symbol"] == ["APPL2", "MSFT"]
    closes = query_catalog(filled, "SELECT close FROM series('APPL2', '1m') ORDER BY ts")
    assert closes["close"].to_pylist() == records_of(filled, "APPL2")["closes"]


def test_retired_bars_are_kept_unqueried_and_the_symbol_is_free(
    filled: StoreLayout, make: Any
) -> None:
    """The files do not change under retired; another instrument may use the symbol."""
    files = {p.name: p.read_bytes() for p in filled.symbol_folder("AAPL").rglob("*.parquet")}
    adjustments = filled.adjustments_file("AAPL").read_bytes()
    move = retire(filled, "AAPL", NOW)
    assert move.target == "AAPL@1"
    kept = filled.retired / "AAPL@1"
    assert {p.name: p.read_bytes() for p in kept.rglob("*.parquet")} == files
    assert (kept / "adjustments.json").read_bytes() == adjustments
    assert AdjustmentHistory(filled).symbols() == []
    assert list(load_universe(filled.universe).instruments) == ["MSFT"]
    filled.universe.write_text(UNIVERSE)
    with closing(Ledger(filled.ledger)) as ledger:
        series = make.series(Timeframe.M1)
        identity = make.identity(series, contract_id=4711)
        bars = make.run(series, FIRST, 3)
        store = BarStore(filled, ledger)
        store.save(series, identity, bars, make.covering(series, bars))
        assert store.read(series).equals(bars)
        assert store.read_raw(series)["basis"].to_pylist() == [0] * 3
        assert ledger.basis_checks.of("AAPL") == BasisCheck()
        assert ledger.contracts.of("AAPL", identity.origin) is None
        assert ledger.attempts.of("AAPL|1m") == []
    assert retire(filled, "AAPL", NOW).target == "AAPL@2"


def test_series_that_a_load_is_requesting_is_not_moved(filled: StoreLayout, make: Any) -> None:
    """The error names the series; after the load, the move succeeds."""
    before = records_of(filled, "AAPL")
    with closing(Ledger(filled.ledger)) as ledger, claiming(filled, ledger) as claimant:
        series = make.series(Timeframe.H1)
        assert claimant.claim_each(series, [Interval(FIRST, FIRST + timedelta(hours=1))], NOW)
        with pytest.raises(StoreError, match="requesting AAPL 1h"):
            rename(filled, "AAPL", "APPL2", NOW)
        with pytest.raises(StoreError, match="requesting AAPL 1h"):
            retire(filled, "AAPL", NOW)
    assert records_of(filled, "AAPL") == before
    rename(filled, "AAPL", "APPL2", NOW)
    assert_renamed(filled, before)


def test_no_bar_is_saved_while_a_move_is_unfinished(
    filled: StoreLayout, store: BarStore, make: Any
) -> None:
    """It would be saved into a folder that is about to be removed."""
    write_journal(filled, Move(MoveKind.RENAME, "AAPL", "APPL2"))
    series = make.series(Timeframe.M1)
    with pytest.raises(StoreError, match="rename of AAPL to APPL2"):
        make.save(store, series, make.run(series, FIRST, 30))
    other = make.series(Timeframe.M1, "MSFT")
    assert make.save(store, other, make.run(other, FIRST, 30)).added == 10


@pytest.mark.parametrize(
    "move", [lambda one: rename(one, "AAPL", "APPL2", NOW), lambda one: retire(one, "AAPL", NOW)]
)
def test_a_load_that_began_before_a_move_writes_nothing_under_the_old_name(
    filled: StoreLayout, make: Any, move: Any
) -> None:
    """Its bars of the symbol are refused; other symbols are saved as before."""
    before = BarStore(filled, Ledger(filled.ledger))
    series, other = make.series(Timeframe.H1, "AAPL"), make.series(Timeframe.H1, "MSFT")
    bars = make.run(series, FIRST, 2)
    move(filled)
    with pytest.raises(StoreError, match=r"first bars of AAPL: .* does not name it"):
        make.save(before, series, bars)
    assert not filled.symbol_folder("AAPL").exists()
    make.save(before, other, bars)
    assert before.rows(other) == 2


def test_first_bars_need_a_universe_that_names_the_symbol_only_where_it_can_be_read(
    layout: StoreLayout, store: BarStore, make: Any
) -> None:
    """A bad edit of the universe while a load runs loses no bar."""
    layout.universe.write_text("symbols: [")
    series = make.series(Timeframe.H1, "AAPL")
    make.save(store, series, make.run(series, FIRST, 2))
    assert store.rows(series) == 2


@pytest.mark.parametrize(
    ("symbol", "target", "error"),
    [("AAPL", "MSFT", StoreError), ("TSLA", "T", UniverseError), ("AAPL", "a b", UniverseError)],
)
def test_an_impossible_move_changes_nothing(
    filled: StoreLayout, symbol: str, target: str, error: type[Exception]
) -> None:
    """A used name, an unknown symbol, an invalid symbol."""
    before = records_of(filled, "AAPL")
    with pytest.raises(error):
        rename(filled, symbol, target, NOW)
    assert records_of(filled, "AAPL") == before
    assert filled.universe.read_text() == UNIVERSE
    assert pending_move(filled) is None


def test_unreadable_file_stops_a_rename_before_it_begins(filled: StoreLayout) -> None:
    """Nothing has moved; the error hints at repair."""
    path = filled.series_folder("AAPL", Timeframe.M1) / "2023.parquet"
    path.write_bytes(b"no bars")
    with pytest.raises(CorruptFileError, match="ktrdr repair"):
        rename(filled, "AAPL", "APPL2", NOW)
    assert pending_move(filled) is None
    assert path.read_bytes() == b"no bars"


@pytest.mark.parametrize("put", ["damaged", "in the way"])
def test_adjustments_stop_a_rename_before_it_begins(filled: StoreLayout, put: str) -> None:
    """Damaged ones, and those that another symbol left under the new name."""
    before = filled.adjustments_file("AAPL").read_bytes()
    if put == "damaged":
        filled.adjustments_file("AAPL").write_bytes(b"{")
    else:
        filled.adjustments_file("APPL2").write_bytes(before)
    with pytest.raises(StoreError, match=r"\.json"):
        rename(filled, "AAPL", "APPL2", NOW)
    assert pending_move(filled) is None
    assert filled.symbol_folder("AAPL").exists()
    assert "AAPL" in load_universe(filled.universe).instruments
    retire(filled, "AAPL", NOW)
    kept = filled.retired / "AAPL@1" / "adjustments.json"
    assert kept.read_bytes() == (b"{" if put == "damaged" else before)


def test_adjustments_damaged_during_a_rename_stay_with_the_bars(filled: StoreLayout) -> None:
    """The bars are refused under the new name, not served without them; repair restores them."""
    before = records_of(filled, "AAPL")
    write_journal(filled, Move(MoveKind.RENAME, "AAPL", "APPL2"))
    shutil.copytree(filled.symbol_folder("AAPL"), filled.epochs / "renaming-AAPL-to-APPL2")
    filled.adjustments_file("AAPL").write_bytes(b"{")
    with closing(Ledger(filled.ledger)) as ledger:
        finish_move(filled, ledger)
        with pytest.raises(CorruptFileError, match=r"APPL2\.json"):
            BarStore(filled, ledger).bases.of("APPL2")
        assert ledger.adjustments.of("APPL2") == before["index"]
    assert AdjustmentHistory(filled).symbols() == ["APPL2"]


def test_a_rename_makes_a_store_of_version_1_one_of_version_2_first(filled: StoreLayout) -> None:
    """It writes files that programs of version 1 cannot read."""
    marker = filled.marker
    marker.write_text(marker.read_text().replace('"format_version": 2', '"format_version": 1'))
    rename(filled, "AAPL", "APPL2", NOW)
    assert store_version(filled) == 2
    assert not filled.catalog.exists()


@pytest.mark.parametrize(("beside", "move"), [("epochs", rename), ("retired", retire)])
def test_a_move_to_another_disk_is_not_begun(filled: StoreLayout, beside: str, move: Any) -> None:
    """Folders cannot be renamed to another disk, and an unfinished move blocks loads."""
    shutil.rmtree(filled.root / beside, ignore_errors=True)
    (filled.root / beside).symlink_to("/dev")
    before = records_of(filled, "AAPL")
    names = ("AAPL", "APPL2") if move is rename else ("AAPL",)
    with pytest.raises(StoreError, match=rf"different disks.*Link {beside}"):
        move(filled, *names, NOW)
    assert pending_move(filled) is None
    assert records_of(filled, "AAPL") == before


def kill_at(layout: StoreLayout, kind: str, step: int) -> int:
    """Move AAPL in a process that is killed before its n-th change of anything on disk."""
    command = [sys.executable, str(KILLED_RENAME), kind, str(layout.root), str(step)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode in {0, -9}, done.stderr
    return done.returncode


SHARES = 3
"""Number of tests among which the moments of a kill are divided, so that none takes minutes."""


@pytest.mark.slow
@pytest.mark.on_disk
@pytest.mark.parametrize("share", range(SHARES))
@pytest.mark.parametrize("by", ["repair", "again"])
def test_rename_killed_anywhere_is_completed_or_never_begun(
    tmp_path: Path, make: Any, by: str, share: int
) -> None:
    """After a kill before any change on disk, repair or the same call again leaves it renamed."""
    for step in range(1 + share, 100, SHARES):
        layout = new_store(tmp_path / f"{step}", make)
        before = records_of(layout, "AAPL")
        if kill_at(layout, "rename", step) == 0:
            assert step > 10
            break
        assert_served_on_one_basis(layout, before["closes"])
        finish(layout, by)
        if "APPL2" not in load_universe(layout.universe).instruments:
            assert records_of(layout, "AAPL") == before
            rename(layout, "AAPL", "APPL2", NOW)
        assert_renamed(open_store(layout.root), before)
    else:
        raise AssertionError("the move was never completed")


@pytest.mark.slow
@pytest.mark.on_disk
@pytest.mark.parametrize("share", range(SHARES))
@pytest.mark.parametrize("by", ["repair", "again"])
def test_retirement_killed_anywhere_is_completed_or_never_begun(
    tmp_path: Path, make: Any, by: str, share: int
) -> None:
    """After a kill before any change on disk, the bars are kept unchanged and unqueried."""
    for step in range(1 + share, 100, SHARES):
        layout = new_store(tmp_path / f"{step}", make)
        folder = layout.symbol_folder("AAPL")
        files = {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*.parquet")}
        adjustments = layout.adjustments_file("AAPL").read_bytes()
        if kill_at(layout, "retire", step) == 0:
            assert step > 4
            break
        finish(layout, by)
        if "AAPL" in load_universe(layout.universe).instruments:
            retire(layout, "AAPL", NOW)
        (kept,) = layout.retired.iterdir()
        assert {p.relative_to(kept): p.read_bytes() for p in kept.rglob("*.parquet")} == files
        assert list(load_universe(layout.universe).instruments) == ["MSFT"]
        assert (kept / "adjustments.json").read_bytes() == adjustments
        assert AdjustmentHistory(layout).symbols() == []
        assert not folder.exists()
        assert pending_move(layout) is None
    else:
        raise AssertionError("the move was never completed")


@pytest.mark.parametrize("target", ["AAPL", "OLD"])
def test_restored_symbol_has_all_that_it_had(filled: StoreLayout, target: str) -> None:
    """Bars, ledger rows, adjustments and the entry, under its own or another symbol."""
    filled.universe.write_text(UNIVERSE.replace("AAPL: {}", "AAPL: {start: 2021-01-04}"))
    before = records_of(filled, "AAPL")
    retire(filled, "AAPL", NOW)
    move = restore(filled, "AAPL", NOW, new_symbol=target)
    assert (move.symbol, move.target) == ("AAPL@1", target)
    assert records_of(filled, target) == before | {"identities": {target}}
    assert not (filled.retired / "AAPL@1").exists()
    assert list(filled.epochs.iterdir()) == []
    entry = {"AAPL": "{start: 2021-01-04}", "OLD": "{con_id: 265598, start: 2021-01-04}"}
    assert filled.universe.read_text().endswith(f"  MSFT: {{}}\n  {target}: {entry[target]}\n")
    assert repair(filled, now=NOW).quarantined == ()


def test_bars_of_earlier_versions_are_restored_by_what_they_say(filled: StoreLayout) -> None:
    """Without a kept entry, contract, timeframes, hours and kind of bars come from the files."""
    retire(filled, "AAPL", NOW)
    (filled.retired / "AAPL@1" / "entry.json").unlink()
    text = filled.universe.read_text()
    filled.universe.write_text(f"defaults: {{use_rth: false}}\n{text}")
    restore(filled, "AAPL@1", NOW)
    instrument = load_universe(filled.universe).instrument("AAPL")
    assert (instrument.contract_id, instrument.use_rth) == (265598, True)
    assert set(instrument.timeframes) == {Timeframe.M1, Timeframe.D1}


@pytest.mark.parametrize(
    ("entry", "error"),
    [
        ("{con_id: 4711}", "is another instrument by now"),
        ("{use_rth: false}", "use_rth True, not False"),
    ],
)
def test_a_symbol_that_another_instrument_has_is_not_restored(
    filled: StoreLayout, entry: str, error: str
) -> None:
    """The error names the way, which works; an entry of the same instrument is no obstacle."""
    retire(filled, "AAPL", NOW)
    filled.universe.write_text(UNIVERSE.replace("AAPL: {}", f"AAPL: {entry}"))
    with pytest.raises(StoreError, match=rf"{error}.*restore AAPL@1 --as NEW"):
        restore(filled, "AAPL", NOW)
    assert pending_move(filled) is None
    assert restore(filled, "AAPL", NOW, new_symbol="NEW").target == "NEW"
    assert list(load_universe(filled.universe).instruments) == ["AAPL", "MSFT", "NEW"]
    retire(filled, "NEW", NOW)
    filled.universe.write_text(UNIVERSE + "  NEW: {con_id: 265598}\n")
    restore(filled, "NEW", NOW)
    assert filled.universe.read_text() == UNIVERSE + "  NEW: {con_id: 265598}\n"
    assert records_of(filled, "NEW")["files"]


def test_a_symbol_without_bars_is_restored_too(filled: StoreLayout) -> None:
    """Its entry is kept in a folder of its own."""
    filled.universe.write_text(UNIVERSE + "  TSLA: {timeframes: [1d]}\n")
    retire(filled, "TSLA", NOW)
    with pytest.raises(UnknownSymbolError, match="Retired are TSLA@1"):
        restore(filled, "TSL", NOW)
    restore(filled, "TSLA", NOW)
    assert filled.universe.read_text() == UNIVERSE + "  TSLA: {timeframes: [1d]}\n"
    assert list(filled.retired.iterdir()) == []


@pytest.mark.slow
@pytest.mark.on_disk
@pytest.mark.parametrize("share", range(SHARES))
@pytest.mark.parametrize("target", ["AAPL", "OLD"])
def test_restoring_killed_anywhere_is_completed_or_never_begun(
    tmp_path: Path, make: Any, target: str, share: int
) -> None:
    """After a kill before any change on disk, repair or the same call leaves it restored."""
    for step in range(1 + share, 100, SHARES):
        layout = new_store(tmp_path / f"{step}", make)
        before = records_of(layout, "AAPL")
        retire(layout, "AAPL", NOW)
        if kill_at(layout, f"restore {target}", step) == 0:
            assert step > 4
            break
        finish(layout, "repair" if step % 2 else "again")
        if target not in load_universe(layout.universe).instruments:
            restore(layout, "AAPL", NOW, new_symbol=target)
        assert records_of(layout, target) == before | {"identities": {target}}
        assert list(layout.retired.iterdir()) == []
        assert pending_move(layout) is None
    else:
        raise AssertionError("the move was never completed")


def assert_served_on_one_basis(layout: StoreLayout, closes: list[float]) -> None:
    """Assert that bars of AAPL are read with their adjustments, under whichever name they are."""
    with closing(Ledger(layout.ledger)) as ledger:
        store = BarStore(layout, ledger)
        found = [store.read(Make().series(symbol=one)) for one in ("AAPL", "APPL2")]
    read = [one["close"].to_pylist() for one in found if one.num_rows]
    assert read in ([closes], [closes, closes])


def new_store(root: Path, make: Any) -> StoreLayout:
    """Return another filled store."""
    layout = create_store(root)
    layout.universe.write_text(UNIVERSE)
    with closing(Ledger(layout.ledger)) as ledger:
        fill(layout, BarStore(layout, ledger, clock=lambda: NOW), make)
    return layout


def finish(layout: StoreLayout, by: str) -> None:
    """Complete a killed move, by a repair or by the move itself."""
    if by == "repair":
        assert repair(layout, now=NOW).quarantined == ()
    else:
        with closing(Ledger(layout.ledger)) as ledger:
            finish_move(layout, ledger)
    assert list(layout.epochs.iterdir()) == []
