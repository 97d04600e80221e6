"""Findings: implausible bars that the gateway returned, as opposed to damage."""

import sqlite3
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ktrdr_pipelines.domain.bars import micros, moment, timestamps
from ktrdr_pipelines.domain.coverage import Coverage, Emptiness, ProofKind
from ktrdr_pipelines.domain.intervals import Interval, IntervalSet
from ktrdr_pipelines.domain.plausibility import Finding, FindingKind, findings_of
from ktrdr_pipelines.domain.timeframes import Timeframe
from ktrdr_pipelines.store.bars.bar_file import is_as_written, read_file, write_file
from ktrdr_pipelines.store.bars.bar_store import BarStore
from ktrdr_pipelines.store.layout import StoreLayout
from ktrdr_pipelines.store.ledger.ledger import Ledger
from ktrdr_pipelines.store.maintenance.rename import rename
from ktrdr_pipelines.store.maintenance.repair import RepairReport, repair
from tests.support.older_files import make_older
from tests.support.rewriting import by_arrow, by_duckdb, by_pandas

NOW = datetime(2024, 6, 4, tzinfo=UTC)
OPEN = datetime(2024, 6, 3, 13, 30, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
KEY = "AAPL|1m"


def finding(minute: int, detail: str = "close=-5.0") -> Finding:
    """Return a finding of a minute."""
    return Finding(micros(OPEN + minute * MINUTE), FindingKind.PRICE_SIGN, detail)


def test_findings_are_kept_by_series_and_bar(ledger: Ledger) -> None:
    """Oldest first, one a bar: a newer one of the same bar replaces it, whatever its kind."""
    ledger.findings.record(KEY, [finding(2), finding(1)], NOW)
    ledger.findings.record(f"{KEY}x", [finding(1)], NOW)
    other = Finding(finding(1).ts, FindingKind.VOLUME, "volume=-5.0")
    ledger.findings.record(KEY, [other], NOW)
    assert ledger.findings.of(KEY) == [other, finding(2)]
    assert ledger.findings.counts() == {KEY: 2, f"{KEY}x": 1}
    ledger.findings.clear(KEY, [other.ts])
    assert ledger.findings.of(KEY) == [finding(2)]
    assert ledger.findings.of(f"{KEY}x") == [finding(1)]
    assert ledger.findings.of("MSFT|1m") == []


def test_a_ledger_of_version_6_gets_the_table(ledger: Ledger) -> None:
    """It is migrated when it is opened."""
    ledger.findings.record(KEY, [], NOW)
    ledger.close()
    with closing(sqlite3.connect(ledger.path)) as connection:
        connection.execute("DROP TABLE findings")
        connection.execute("PRAGMA user_version = 6")
    ledger.findings.record(KEY, [finding(1)], NOW)
    assert ledger.findings.of(KEY) == [finding(1)]
    ledger.check()


def spoiled(bars: pa.Table, minute: int, column: str = "close", value: float = -5.0) -> pa.Table:
    """Return bars of which one has another value."""
    values = bars[column].to_pylist()
    values[minute] = value
    position = bars.schema.get_field_index(column)
    field = bars.schema.field(column)
    return bars.set_column(position, field, pa.array(values, field.type))


@pytest.fixture
def implausible(store: BarStore, make: Any) -> Path:
    """Save ten minutes as an earlier version did: one closes at -5, and there is no finding."""
    series = make.series()
    make.save(store, series, spoiled(make.run(series, OPEN, 10, 10.0), 3))
    [path] = store.layout.bar_files("AAPL", Timeframe.M1)
    make_older(store.layout, path)
    return path


def repaired(layout: StoreLayout, make: Any) -> RepairReport:
    """Repair with a universe of one stock."""
    return repair(layout, [make.instrument()], NOW)


def test_repair_derives_findings_of_earlier_versions(
    layout: StoreLayout, ledger: Ledger, implausible: Path, make: Any
) -> None:
    """Once; the file and its coverage stay as they are."""
    before = implausible.stat().st_ino
    assert repaired(layout, make).findings == 1
    [found] = ledger.findings.of(KEY)
    assert (found.ts, found.kind) == (finding(3).ts, FindingKind.PRICE_SIGN)
    assert "close=-5.0" in found.detail
    again = repaired(layout, make)
    assert (again.findings, again.distrusted, again.fixed) == (0, (), ())
    assert ledger.findings.of(KEY) == [found]
    assert implausible.stat().st_ino == before


def test_a_lost_ledger_loses_no_finding(
    layout: StoreLayout, store: BarStore, implausible: Path, make: Any
) -> None:
    """They are derived from the files again."""
    repaired(layout, make)
    before = store.ledger.findings.of(KEY)
    store.ledger.close()
    for path in layout.state.glob("ledger.sqlite*"):
        path.unlink()
    assert repaired(layout, make).findings == 1
    with closing(Ledger(layout.ledger)) as ledger:
        assert ledger.findings.of(KEY) == before


def test_repair_deletes_findings_of_other_values(
    layout: StoreLayout, ledger: Ledger, implausible: Path, make: Any
) -> None:
    """Bars that are plausible now, and bars that are gone."""
    ledger.findings.record(KEY, [finding(3), finding(5), finding(90)], NOW)
    repaired(layout, make)
    assert [one.ts for one in ledger.findings.of(KEY)] == [finding(3).ts]
    assert "close=-5.0" in ledger.findings.of(KEY)[0].detail


def test_a_bar_that_no_response_covers_is_no_finding(
    layout: StoreLayout, store: BarStore, make: Any
) -> None:
    """It is requested again anyway."""
    series = make.series()
    bars = spoiled(make.run(series, OPEN, 10, 10.0), 3)
    covered = make.covering(series, bars).bars - IntervalSet(
        [Interval(OPEN + 3 * MINUTE, OPEN + 4 * MINUTE)]
    )
    store.save(series, make.identity(series), bars, Coverage(covered))
    report = repaired(layout, make)
    assert (report.findings, report.distrusted) == (0, ())
    assert store.ledger.findings.of(KEY) == []


@pytest.mark.parametrize("rewrite", [by_arrow, by_pandas, by_duckdb])
def test_a_file_of_another_program_is_recognized(implausible: Path, rewrite: Any) -> None:
    """Whether it keeps the footer or not."""
    assert is_as_written(implausible)
    rewrite(implausible)
    assert not is_as_written(implausible)


@pytest.mark.parametrize("rewrite", [by_arrow, by_pandas, by_duckdb])
def test_implausible_bars_of_another_program_are_requested_again(
    layout: StoreLayout, store: BarStore, implausible: Path, make: Any, *, rewrite: Any
) -> None:
    """They are kept, no finding, and not covered; what is plausible stays covered."""
    series = make.series()
    rewrite(implausible)
    report = repaired(layout, make)
    assert (report.findings, report.distrusted, report.fixed) == (0, (implausible,), ())
    assert store.rows(series) == 10
    missing = make.covering(series, store.read(series)).bars - store.coverage(series).bars
    assert missing == IntervalSet([Interval(OPEN + 3 * MINUTE, OPEN + 4 * MINUTE)])
    again = repaired(layout, make)
    assert (again.findings, again.distrusted, again.fixed) == (0, (), ())
    assert store.ledger.findings.of(KEY) == []


@pytest.mark.parametrize("rewrite", [by_arrow, by_pandas, by_duckdb])
def test_a_known_finding_survives_another_program(
    layout: StoreLayout, store: BarStore, implausible: Path, make: Any, *, rewrite: Any
) -> None:
    """The values are those that the gateway returned."""
    repaired(layout, make)
    before = store.ledger.findings.of(KEY)
    coverage = store.coverage(make.series())
    rewrite(implausible)
    assert repaired(layout, make).distrusted == ()
    assert store.ledger.findings.of(KEY) == before
    assert store.coverage(make.series()) == coverage


@pytest.mark.parametrize("rewrite", [by_arrow, by_pandas, by_duckdb])
def test_a_save_has_implausible_bars_of_another_program_requested_again(
    store: BarStore, implausible: Path, make: Any, rewrite: Any
) -> None:
    """Otherwise they would pass as the gateway's in the rewritten file."""
    series = make.series()
    rewrite(implausible)
    make.save(store, series, make.run(series, OPEN + 20 * MINUTE, 1, 10.0))
    assert is_as_written(implausible)
    assert store.rows(series) == 11
    assert OPEN + 3 * MINUTE not in store.coverage(series).bars
    assert OPEN + 4 * MINUTE in store.coverage(series).bars


def test_a_save_into_an_unchanged_file_uncovers_nothing(
    store: BarStore, implausible: Path, make: Any
) -> None:
    """Bars of earlier versions stay covered until the store is repaired."""
    series = make.series()
    make.save(store, series, make.run(series, OPEN + 20 * MINUTE, 1, 10.0))
    assert is_as_written(implausible)
    assert OPEN + 3 * MINUTE in store.coverage(series).bars


def test_a_rename_moves_findings_and_trusts_no_file_more(
    layout: StoreLayout, store: BarStore, implausible: Path, make: Any
) -> None:
    """Values of another program stay recognizable as such."""
    layout.universe.write_text("symbols: {AAPL: {}}\n")
    repaired(layout, make)
    before = store.ledger.findings.of(KEY)
    assert len(before) == 1
    pq.write_table(spoiled(pq.read_table(implausible, partitioning=None), 7), implausible)
    rename(layout, "AAPL", "APPL2", NOW)
    [path] = layout.bar_files("APPL2", Timeframe.M1)
    assert not is_as_written(path)
    assert store.ledger.findings.of("APPL2|1m") == before
    assert store.ledger.findings.of(KEY) == []


@pytest.mark.parametrize("rewrite", [None, by_arrow])
def test_a_retracted_proof_makes_no_file_trusted(store: BarStore, make: Any, rewrite: Any) -> None:
    """Only the footer is rewritten then."""
    series = make.series()
    bars = spoiled(make.run(series, OPEN, 10, 10.0), 3)
    empty = Interval(OPEN + 30 * MINUTE, OPEN + 40 * MINUTE)
    proof = Emptiness(empty, NOW)
    coverage = Coverage(make.covering(series, bars).bars, (proof,))
    store.save(series, make.identity(series), bars, coverage)
    [path] = store.layout.bar_files("AAPL", Timeframe.M1)
    make_older(store.layout, path)
    if rewrite is not None:
        rewrite(path)
    taken = store.retract_proofs("AAPL", Timeframe.M1, IntervalSet([empty]), frozenset(ProofKind))
    assert taken == IntervalSet([empty])
    assert is_as_written(path) == (rewrite is None)


def test_written_values_are_read_back_as_the_finding_has_them(
    store: BarStore, implausible: Path, make: Any
) -> None:
    """The text of a finding is made of the values in the file, to the last digit."""
    footer, bars = read_file(implausible)
    bars = spoiled(spoiled(bars, 3, "close", -0.1 - 0.2), 3, "volume", -5e-324)
    write_file(implausible, bars, footer)
    keys = [int(timestamps(bars)[3])]
    assert moment(keys[0]) == OPEN + 3 * MINUTE
    assert findings_of(read_file(implausible)[1], keys) == findings_of(bars, keys)
    assert "close=-0.30000000000000004" in findings_of(bars, keys)[0].detail
