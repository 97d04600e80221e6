"""Recording adjustments: files, ledger and catalog follow at once, also after a kill."""

from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import duckdb
import pytest

from ktrdr_pipelines.domain.adjustments import AdjustmentKind
from ktrdr_pipelines.domain.bars import UNCONFIRMED
from ktrdr_pipelines.domain.intervals import Interval
from ktrdr_pipelines.domain.plausibility import Disagreement, DisagreementKind
from ktrdr_pipelines.domain.timeframes import Timeframe
from ktrdr_pipelines.errors import CorruptFileError, StoreError, UsageError
from ktrdr_pipelines.store.bars.bar_store import BarStore, read_footer
from ktrdr_pipelines.store.bars.footer import Presumed
from ktrdr_pipelines.store.catalog.catalog import (
    files_after_catalog,
    query_catalog,
    rebuild_catalog,
)
from ktrdr_pipelines.store.layout import StoreLayout, store_version
from ktrdr_pipelines.store.maintenance.rename_journal import Move, MoveKind, write_journal
from ktrdr_pipelines.store.rebasing import (
    adjust,
    record_adjustment,
    remove_adjustment,
    require_current_views,
)

NOW = datetime(2024, 6, 5, 20, tzinfo=UTC)
OPEN = datetime(2024, 6, 3, 13, 30, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
DAYS = [datetime(2024, 6, day, tzinfo=UTC) for day in (3, 4, 5)]


@pytest.fixture
def held(layout: StoreLayout, store: BarStore, make: Any) -> BarStore:
    """Return a store with days and minutes of AAPL at 100, and its catalog."""
    minutes, days = make.series(), make.series(Timeframe.D1)
    make.save(store, minutes, make.run(minutes, OPEN, 3, 100.0))
    make.save(store, days, make.bars(days, DAYS, 100.0))
    rebuild_catalog(layout, [minutes.instrument], NOW)
    return store


def in_shell(layout: StoreLayout, source: str) -> list[float]:
    """Return the closes of a source, oldest first, as a DuckDB shell sees them."""
    with closing(duckdb.connect(str(layout.catalog), read_only=True)) as shell:
        sql = f"SELECT close FROM {source} WHERE symbol = 'AAPL' ORDER BY ts"  # noqa: S608
        rows = shell.execute(sql).fetchall()
    return [close for (close,) in rows]


def closes(store: BarStore, make: Any, timeframe: Timeframe = Timeframe.M1) -> list[float]:
    """Return the closes of AAPL, which all ways of reading them agree on."""
    read: list[float] = store.read(make.series(timeframe))["close"].to_pylist()
    source = f"series('AAPL', '{timeframe}')"
    sql = f"SELECT close FROM {source} ORDER BY ts"  # noqa: S608
    assert query_catalog(store.layout, sql)["close"].to_pylist() == read
    assert in_shell(store.layout, source) == read
    assert in_shell(store.layout, f"bars_{timeframe}") == read
    return read


def asked(at: datetime, fetched_at: datetime) -> Presumed:
    """Return that the basis of two minutes is presumed."""
    return Presumed(Interval(at, at + 2 * MINUTE), fetched_at, fetched_at)


def by_hand(store: BarStore, ratio: float = 0.01, effective: date = date(2024, 6, 5)) -> None:
    """Adjust AAPL as a person does."""
    adjust(
        store,
        "AAPL",
        ratio=ratio,
        volume_ratio=1 / ratio,
        effective=effective,
        note="pence",
        now=NOW,
    )


def test_a_recorded_split_is_known_everywhere_at_once(held: BarStore, make: Any) -> None:
    """By readers, the ledger, queries and shells, of all timeframes."""
    assert make.rebase(held, make.split(1, 0.25))
    assert held.bases.history.of("AAPL") == (make.split(1, 0.25),)
    assert held.ledger.adjustments.all() == {"AAPL": (make.split(1, 0.25),)}
    assert closes(held, make) == [25.0] * 3
    assert closes(held, make, Timeframe.D1) == [25.0] * 3
    assert in_shell(held.layout, "raw_1d") == [100.0] * 3
    (row,) = query_catalog(held.layout, "FROM adjustments").to_pylist()
    assert (row["symbol"], row["number"], row["ratio"]) == ("AAPL", 1, 0.25)


def test_only_the_next_adjustment_is_recorded(held: BarStore, make: Any) -> None:
    """Another process may have found the same one meanwhile, or the symbol may be gone."""
    assert make.rebase(held, make.split(1, 0.25))
    assert not make.rebase(held, make.split(1, 0.25))
    assert not make.rebase(held, make.split(3, 0.25))
    assert not make.rebase(held, make.split(1, 0.25), "MSFT")
    assert make.rebase(held, make.split(2, 0.5))
    assert held.bases.history.all() == ({"AAPL": (make.split(1, 0.25), make.split(2, 0.5))}, {})
    assert closes(held, make) == [12.5] * 3


def test_presumed_bars_are_left_out_of_what_is_multiplied(held: BarStore, make: Any) -> None:
    """Those requested after the old basis was last confirmed; they are missing from then on."""
    series, late = make.series(), OPEN + timedelta(hours=1)
    split = make.split(1, 0.25)
    bars = make.run(series, late, 2, 25.0)
    presumed = asked(late, split.old_until + MINUTE)
    held.save(series, make.identity(series), bars, make.covering(series, bars), presumed=[presumed])
    assert make.rebase(held, split)
    assert closes(held, make) == [25.0] * 3
    assert not held.coverage(series).bars.clip(presumed.interval)
    assert in_shell(held.layout, "raw_1m") == [100.0] * 3 + [25.0] * 2


def test_what_is_certain_is_not_doubted(held: BarStore, make: Any) -> None:
    """Presumed bars requested before the last confirmation, compared ones, and earlier doubts."""
    series, split = make.series(), make.split(1, 0.25)
    early, late, last = (OPEN + hours * timedelta(hours=1) for hours in (1, 2, 3))
    before, after = split.old_until - MINUTE, split.old_until + MINUTE
    for at, price, fetched_at in ((early, 60.0, before), (late, 25.0, after), (last, 400.0, after)):
        bars = make.run(series, at, 2, price)
        one = asked(at, fetched_at)
        held.save(series, make.identity(series), bars, make.covering(series, bars), presumed=[one])
    compared = Interval(last, last + 2 * MINUTE)
    assert record_adjustment(held, series, split, compared=compared)
    assert held.read_raw(series)["basis"].to_pylist() == [0] * 5 + [UNCONFIRMED] * 2 + [0] * 2
    assert closes(held, make) == [25.0] * 3 + [15.0] * 2 + [100.0] * 2
    spans = held.coverage(series).bars
    assert not spans.clip(Interval(late, last))
    assert spans.covers(compared)
    (path,) = held.layout.bar_files("AAPL", Timeframe.M1)
    basis = read_footer(path).basis
    assert [one.fetched_at for one in basis.presumed] == [before]
    assert make.rebase(held, make.split(2, 0.5))
    assert held.read_raw(series)["basis"].to_pylist() == [0] * 5 + [UNCONFIRMED] * 2 + [0] * 2


def test_a_person_adjusts_by_date_and_undoes_it(held: BarStore, make: Any) -> None:
    """Bars from the date on, and bars that come later, are as the gateway serves them."""
    by_hand(held)
    assert closes(held, make, Timeframe.D1) == [1.0, 1.0, 100.0]
    assert closes(held, make) == [1.0] * 3
    days = make.series(Timeframe.D1)
    make.save(held, days, make.bars(days, DAYS[:1], 90.0))
    assert closes(held, make, Timeframe.D1) == [90.0, 1.0, 100.0]
    undone = remove_adjustment(held, "AAPL", number=None, now=NOW)
    assert undone.number == 1
    assert closes(held, make, Timeframe.D1) == [90.0, 100.0, 100.0]
    (kept,) = held.bases.history.of("AAPL")
    assert (kept.kind, kept.note, kept.removed_at) == (AdjustmentKind.MANUAL, "pence", NOW)
    assert held.ledger.adjustments.of("AAPL") == (kept,)


def test_an_adjustment_answers_the_report_of_a_change_of_unit(held: BarStore) -> None:
    """It is no longer listed; other disagreements are."""
    for kind in (DisagreementKind.UNIT, DisagreementKind.PRICE):
        differing = Disagreement(OPEN, OPEN + MINUTE, 9, 0.01, kind)
        held.ledger.disagreements.record("AAPL|1m", differing, NOW)
    by_hand(held)
    left = held.ledger.disagreements.of("AAPL|1m", set(DisagreementKind))
    assert [one.kind for one in left] == [DisagreementKind.PRICE]


def test_an_adjustment_without_bars_is_refused(held: BarStore) -> None:
    """It concerns the bars that there are."""
    with pytest.raises(UsageError, match="no bars"):
        adjust(
            held,
            "MSFT",
            ratio=0.01,
            volume_ratio=1.0,
            effective=date(2024, 6, 5),
            note="",
            now=NOW,
        )
    assert held.bases.history.symbols() == []


@pytest.mark.parametrize(
    ("number", "numbers"), [(None, "2, 3"), (1, "2, 3"), (4, "2, 3"), (9, "2, 3")]
)
def test_only_a_manual_adjustment_in_force_can_be_removed(
    held: BarStore, make: Any, number: int | None, numbers: str
) -> None:
    """Named, or the only one; a split is a fact about the stored bars."""
    make.rebase(held, make.split(1, 0.25))
    for _ in range(3):
        by_hand(held)
    remove_adjustment(held, "AAPL", number=4, now=NOW)
    with pytest.raises(UsageError, match=rf"have the numbers: {numbers}"):
        remove_adjustment(held, "AAPL", number=number, now=NOW)
    assert remove_adjustment(held, "AAPL", number=2, now=NOW).number == 2
    assert remove_adjustment(held, "AAPL", number=None, now=NOW).number == 3


ACTS: list[Callable[[BarStore, Any], object]] = [
    lambda store, make: make.rebase(store, make.split(1, 0.25)),
    lambda store, _: by_hand(store),
    lambda store, _: remove_adjustment(store, "AAPL", number=None, now=NOW),
]


@pytest.mark.parametrize("act", ACTS)
def test_nothing_is_recorded_where_adjustments_are_lost_or_damaged(
    held: BarStore, make: Any, act: Callable[[BarStore, Any], object]
) -> None:
    """A new file with the number 1 would make the loss look like none."""
    by_hand(held)
    path = held.layout.adjustments_file("AAPL")
    path.write_bytes(b"{")
    with pytest.raises(CorruptFileError, match=r"AAPL\.json"):
        act(held, make)
    path.unlink()
    with pytest.raises(StoreError, match=r"AAPL\.json has 0 adjustments, the ledger has 1"):
        act(held, make)
    assert not path.exists()


@pytest.mark.parametrize("act", ACTS)
def test_nothing_is_recorded_while_the_symbol_is_moved(
    held: BarStore, make: Any, act: Callable[[BarStore, Any], object]
) -> None:
    """Neither under the old name nor under the new one."""
    write_journal(held.layout, Move(MoveKind.RENAME, "AAPL", "APPL2"))
    with pytest.raises(StoreError, match="rename of AAPL to APPL2 is unfinished"):
        act(held, make)
    assert held.bases.history.symbols() == []


def test_damaged_adjustments_of_another_symbol_do_not_matter(held: BarStore, make: Any) -> None:
    """They are refused alone."""
    other = make.series(symbol="MSFT")
    make.save(held, other, make.run(other, OPEN, 2, 50.0))
    held.bases.history.write("MSFT", [make.split(1, 0.5)])
    held.layout.adjustments_file("MSFT").write_bytes(b"{")
    assert make.rebase(held, make.split(1, 0.25))
    assert closes(held, make) == [25.0] * 3
    with pytest.raises(StoreError, match=r"MSFT\.json.*ktrdr repair"):
        query_catalog(held.layout, "FROM series('MSFT', '1m')")


def test_views_keep_the_time_of_the_tables(held: BarStore, make: Any) -> None:
    """Tables older than the bars are still known to be older."""
    series = make.series()
    make.save(held, series, make.run(series, OPEN + timedelta(hours=1), 2, 100.0))
    assert files_after_catalog(held.layout) == 1
    make.rebase(held, make.split(1, 0.25))
    assert files_after_catalog(held.layout) >= 1
    assert closes(held, make) == [25.0] * 5


def test_a_store_of_version_1_becomes_one_of_version_2(held: BarStore, make: Any) -> None:
    """Programs that do not know adjustments would serve bars without them."""
    marker = held.layout.marker
    marker.write_text(marker.read_text().replace('"format_version": 2', '"format_version": 1'))
    by_hand(held)
    assert store_version(held.layout) == 2
    assert not held.layout.catalog.exists()


# --- kills -------------------------------------------------------------------------------------


class Killed(BaseException):
    """Stands for the end of the process."""


def killed_at(step: int, monkeypatch: pytest.MonkeyPatch, act: Callable[[], object]) -> bool:
    """Run something that ends before its n-th renaming of a file; return whether it ended so."""
    left = [step]
    rename = Path.replace

    def replace_file(path: Path, target: Path) -> Path:
        left[0] -= 1
        if not left[0]:
            raise Killed
        return rename(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", replace_file)
        with suppress(Killed):
            act()
            return False
    return True


def test_killed_anywhere_every_reader_is_on_one_basis_and_the_next_run_completes_it(
    held: BarStore, make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before and after the adjustment, never on both; a shell sees it after the next run."""
    series, late = make.series(), OPEN + timedelta(hours=1)
    split = make.split(1, 0.25)
    bars = make.run(series, late, 2, 25.0)
    presumed = asked(late, split.old_until + MINUTE)
    held.save(series, make.identity(series), bars, make.covering(series, bars), presumed=[presumed])
    for step in range(1, 10):
        was_killed = killed_at(step, monkeypatch, lambda: make.rebase(held, split))
        is_recorded = bool(held.bases.history.of("AAPL"))
        expected = [25.0] * 3 if is_recorded else [100.0] * 3
        if step > 1:  # the presumed bars are left out first
            assert held.read(series)["close"].to_pylist() == expected
            assert set(in_shell(held.layout, "bars_1m")) in ({25.0}, {100.0})
        require_current_views(held)
        if is_recorded:
            assert closes(held, make) == expected
            assert held.ledger.adjustments.of("AAPL") == (split,)
            assert not make.rebase(held, split)
        if not was_killed:
            assert step > 2
            break
        if is_recorded:  # begin again, to be killed later
            held.layout.adjustments_file("AAPL").unlink()
            with held.ledger.database.writing() as connection:
                connection.execute("DELETE FROM adjustments")
            require_current_views(held)
            rebuild_catalog(held.layout, [series.instrument], NOW)
    else:
        raise AssertionError("it never ended")
    assert closes(held, make) == [25.0] * 3


def test_current_views_cost_nothing_without_adjustments(held: BarStore) -> None:
    """The catalog is not touched."""
    before = held.layout.catalog.stat()
    require_current_views(held)
    after = held.layout.catalog.stat()
    assert (after.st_mtime_ns, after.st_ino) == (before.st_mtime_ns, before.st_ino)


def test_a_catalog_built_while_an_adjustment_was_recorded_becomes_current(
    held: BarStore, make: Any
) -> None:
    """Although it is newer than the file of adjustments."""
    held.bases.history.write("AAPL", [make.split(1, 0.25)])  # killed here
    content = held.layout.catalog.read_bytes()
    held.layout.catalog.write_bytes(content)  # by a build that had read the old adjustments
    assert in_shell(held.layout, "bars_1m") == [100.0] * 3
    require_current_views(held)
    assert closes(held, make) == [25.0] * 3
    assert held.ledger.adjustments.count("AAPL") == 1
    removed = replace(make.split(1, 0.25), removed_at=NOW)
    held.bases.history.write("AAPL", [removed])
    require_current_views(held)
    assert closes(held, make) == [100.0] * 3
    assert held.ledger.adjustments.of("AAPL") == (removed,)
