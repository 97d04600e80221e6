"""Asset checks: each fails on its own fault, names it, and passes without it."""

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from typing import Any

import dagster as dg
import pyarrow as pa
import pytest

from ktrdr_pipelines.defs.checks import bars_checks
from ktrdr_pipelines.domain.bars import UNCONFIRMED, timestamps, with_basis
from ktrdr_pipelines.domain.coverage import Coverage
from ktrdr_pipelines.domain.plausibility import Disagreement, DisagreementKind, findings_of
from ktrdr_pipelines.domain.timeframes import Timeframe
from ktrdr_pipelines.store.bars.bar_file import read_file, write_file
from ktrdr_pipelines.store.ledger.ledger import series_key
from ktrdr_pipelines.store.maintenance.repair import repair
from ktrdr_pipelines.store.rebasing import adjust, remove_adjustment

NOW = datetime(2026, 6, 12, 12, tzinfo=UTC)

TIMEFRAMES = (Timeframe.H1, Timeframe.D1)
"""The timeframes of the universe, which alone have assets and checks."""


@pytest.fixture
def check(loaded: Any) -> Callable[..., dict[str, Any]]:
    """Return a function that runs all hourly checks of daily bars at a time."""

    def run(now: datetime = NOW) -> dict[str, Any]:
        defs = loaded.defs()
        checks = bars_checks([Timeframe.D1], lambda: now)
        assets = [dg.AssetSpec(["bars", "1d"])]
        done = dg.materialize(
            [*assets, checks],
            selection=dg.AssetSelection.all_asset_checks(),
            resources=defs.resources,
            instance=loaded.instance,
        )
        assert done.success
        return {one.check_name: one for one in done.get_asset_check_evaluations()}

    return run


def failed(results: dict[str, Any]) -> set[str]:
    """Return the names of the checks that failed."""
    return {name for name, one in results.items() if not one.passed}


def test_complete_fresh_store_passes_all(check: Callable[..., dict[str, Any]]) -> None:
    """All six hourly checks pass, over both symbols."""
    results = check()
    assert set(results) == {
        "unexplained_gaps",
        "tail_is_fresh",
        "order_and_duplicates",
        "ohlc_sane",
        "price_basis",
        "volume_unit",
    }
    assert failed(results) == set()
    assert results["ohlc_sane"].metadata["looked_at"].value > 500


def test_missing_day_is_unexplained_and_named(
    loaded: Any, check: Callable[..., dict[str, Any]], remove: Callable[..., int]
) -> None:
    """A missing inner day fails the gap check alone; the tail stays fresh."""
    remove(loaded, "AAPL", "1d", [date(2024, 7, 5)])
    results = check()
    assert failed(results) == {"unexplained_gaps"}
    assert "| AAPL | 1 | 1 | missing" in results["unexplained_gaps"].metadata["worst"].value
    assert results["unexplained_gaps"].severity is dg.AssetCheckSeverity.WARN


def test_tail_goes_stale_in_session_time_only(check: Callable[..., dict[str, Any]]) -> None:
    """A tail is fresh after a weekend, and stale after a week of sessions."""
    assert "tail_is_fresh" not in failed(check(NOW + timedelta(days=3)))
    results = check(NOW + timedelta(days=8))
    assert "tail_is_fresh" in failed(results)
    assert results["tail_is_fresh"].metadata["bad"].value == 2


def test_volumes_in_another_unit_are_named(
    loaded: Any, check: Callable[..., dict[str, Any]]
) -> None:
    """Volumes in lots beside shares fail the check of volume units alone, as a warning."""
    kind = DisagreementKind.VOLUME
    found = Disagreement(NOW - timedelta(days=9), NOW - timedelta(days=8), 2, 0.01, kind)
    loaded.store.ledger.disagreements.record("MSFT|1d", found, NOW)
    results = check()
    assert failed(results) == {"volume_unit"}
    assert results["volume_unit"].severity is dg.AssetCheckSeverity.WARN
    assert "| MSFT | 0.01 | 2 |" in results["volume_unit"].metadata["worst"].value


def test_bars_at_other_prices_are_named(loaded: Any, check: Callable[..., dict[str, Any]]) -> None:
    """A disagreement is a warning, with its ratio and the command that requests it again."""
    found = Disagreement(NOW - timedelta(days=9), NOW - timedelta(days=8), 2, 0.25)
    loaded.store.ledger.disagreements.record("MSFT|1d", found, NOW)
    results = check()
    assert failed(results) == {"price_basis"}
    basis = results["price_basis"]
    assert basis.severity is dg.AssetCheckSeverity.WARN
    assert (basis.metadata["bad"].value, basis.metadata["looked_at"].value) == (1, 2)
    assert "MSFT: by a factor of 0.25" in basis.description
    assert "ktrdr load MSFT 1d --refresh" in basis.description
    assert "| MSFT | 0.25 | 2 |" in basis.metadata["worst"].value
    loaded.store.ledger.disagreements.clear("MSFT|1d")
    assert failed(check()) == set()


def test_a_change_of_unit_names_the_command_that_decides(
    loaded: Any, check: Callable[..., dict[str, Any]]
) -> None:
    """It is a warning; a refresh would not help."""
    found = Disagreement(NOW - timedelta(days=9), NOW, 5, 100.0, DisagreementKind.UNIT)
    loaded.store.ledger.disagreements.record("MSFT|1d", found, NOW)
    results = check()
    assert failed(results) == {"price_basis"}
    basis = results["price_basis"]
    assert basis.severity is dg.AssetCheckSeverity.WARN
    command = "ktrdr adjust MSFT --ratio 100 --from 2026-06-03 --note TEXT"
    assert command in basis.description
    assert command in basis.metadata["worst"].value


def test_bars_on_an_unconfirmed_basis_are_named(
    loaded: Any, check: Callable[..., dict[str, Any]]
) -> None:
    """They are missing for queries, and fail the check of price bases too."""
    store, series = loaded.store, loaded.series("MSFT", "1d")
    earlier = store.read(series).slice(0, 1)
    for name in ("ts", "session_date"):
        earlier = with_column(earlier, name, lambda old: [old[0] - timedelta(days=7)])
    store.save(series, store.identity(series), with_basis(earlier, UNCONFIRMED), Coverage())
    results = check()
    assert failed(results) == {"price_basis"}
    basis = results["price_basis"]
    assert (basis.severity, basis.metadata["bad"].value) == (dg.AssetCheckSeverity.WARN, 1)
    assert "1 have 1 bars on an unconfirmed basis" in basis.description
    assert "| MSFT | unconfirmed | 1 |" in basis.metadata["worst"].value
    assert "ktrdr load MSFT 1d" in basis.metadata["worst"].value


def test_adjustments_are_metadata_of_a_check_that_passes(
    loaded: Any, check: Callable[..., dict[str, Any]]
) -> None:
    """Readers apply them; the check has their number and the newest, removed ones left out."""
    assert check()["price_basis"].metadata["adjustments"].value == 0
    for ratio in (0.25, 0.5):
        adjust(
            loaded.store,
            "MSFT",
            ratio=ratio,
            volume_ratio=1 / ratio,
            effective=date(2024, 6, 10),
            note="split",
            now=NOW,
        )
    remove_adjustment(loaded.store, "MSFT", number=2, now=NOW)
    basis = check()["price_basis"]
    assert basis.passed
    assert basis.metadata["adjustments"].value == 1
    row = "| MSFT | 1 | manual | 0.25 | 2024-06-10 | 2026-06-12 |"
    assert row in basis.metadata["newest_adjustments"].value


def test_a_bad_file_fails_its_checks_by_name(
    loaded: Any, check: Callable[..., dict[str, Any]]
) -> None:
    """A duplicate bar in a file fails the check of order, with the name of the file."""
    [path] = loaded.layout.bar_files("MSFT", Timeframe.D1)
    status, bars = read_file(path)
    twice = pa.concat_tables([bars, bars.slice(bars.num_rows - 1)])
    write_file(path, twice, replace(status, rows=twice.num_rows))
    results = check()
    assert "order_and_duplicates" in failed(results)
    worst = results["order_and_duplicates"].metadata["worst"].value
    assert "symbol=MSFT/timeframe=1d/all.parquet" in worst


def store_implausible_bar(loaded: Any) -> tuple[Any, pa.Table]:
    """Store one bar of MSFT with a close above its high; return the file and its bars."""
    [path] = loaded.layout.bar_files("MSFT", Timeframe.D1)
    status, bars = read_file(path)
    bars = with_column(bars, "close", lambda old: [*old[:-1], 1e6])
    write_file(path, bars, status)
    return path, bars


def test_damaged_values_are_an_error(loaded: Any, check: Callable[..., dict[str, Any]]) -> None:
    """An implausible bar without a finding fails the check as an error, naming the file."""
    path, _ = store_implausible_bar(loaded)
    result = check()["ohlc_sane"]
    assert not result.passed
    assert result.severity is dg.AssetCheckSeverity.ERROR
    assert (result.metadata["bad"].value, result.metadata["findings"].value) == (1, 0)
    assert loaded.layout.relative(path) in result.metadata["worst"].value


def test_findings_alone_pass_and_are_counted(
    loaded: Any, check: Callable[..., dict[str, Any]]
) -> None:
    """Implausible bars that the gateway returned so pass the check and are counted."""
    _, bars = store_implausible_bar(loaded)
    series = loaded.series("MSFT", "1d")
    found = findings_of(bars, [int(timestamps(bars)[-1])], series.instrument.sec_type)
    loaded.store.ledger.findings.record(series_key(series), found, NOW)
    result = check()["ohlc_sane"]
    assert result.passed
    assert (result.metadata["bad"].value, result.metadata["findings"].value) == (0, 1)
    assert "ktrdr verify" in result.description


def test_damage_is_not_hidden_by_a_finding_of_the_same_bar(
    loaded: Any, check: Callable[..., dict[str, Any]]
) -> None:
    """A finding explains only a bar with the values that it recorded."""
    _, bars = store_implausible_bar(loaded)
    series = loaded.series("MSFT", "1d")
    other = with_column(bars, "close", lambda old: [*old[:-1], 2e6])
    found = findings_of(other, [int(timestamps(other)[-1])], series.instrument.sec_type)
    loaded.store.ledger.findings.record(series_key(series), found, NOW)
    assert not check()["ohlc_sane"].passed


def test_location_has_seven_checks_for_each_timeframe(location: Any) -> None:
    """Two of the three schedules run them: six hourly, one daily."""
    graph = location.defs().resolve_asset_graph()
    assert len(graph.asset_check_keys) == 7 * len(TIMEFRAMES)
    names = {one.name for one in location.defs().schedules}
    assert names == {"tail_schedule", "check_schedule", "integrity_schedule"}


def run_daily(location: Any) -> dict[str, Any]:
    """Run what the daily schedule starts; return its results by timeframe."""
    defs = location.defs()
    job = defs.resolve_job_def(defs.resolve_schedule_def("integrity_schedule").job_name)
    done = job.execute_in_process(instance=location.instance)
    assert done.success
    found = done.get_asset_check_evaluations()
    assert {one.check_name for one in found} == {"file_integrity"}
    return {one.asset_key.path[-1]: one for one in found}


def test_daily_job_reads_files_whole_and_names_damage(loaded: Any) -> None:
    """A changed bit fails the daily check, which reads a share of the files, until a repair."""
    assert all(one.passed for one in run_daily(loaded).values())
    [path] = loaded.store.layout.bar_files("AAPL", Timeframe.D1)
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 1
    path.write_bytes(content)
    results = [run_daily(loaded)["1d"] for _ in range(2)]
    assert not all(one.passed for one in results)
    last = results[-1]
    assert last.severity is dg.AssetCheckSeverity.ERROR
    assert last.metadata["bad"].value == 1
    assert "symbol=AAPL/timeframe=1d/all.parquet" in last.metadata["worst"].value
    assert "ktrdr repair" in last.description
    assert set(run_daily(loaded)) == {str(one) for one in TIMEFRAMES}
    repair(loaded.store.layout)
    assert run_daily(loaded)["1d"].passed


def with_column(bars: pa.Table, name: str, change: Callable[[list[Any]], list[Any]]) -> pa.Table:
    """Return bars with changed values in one column."""
    position = bars.column_names.index(name)
    field = bars.schema.field(name)
    return bars.set_column(position, field, pa.array(change(bars[name].to_pylist()), field.type))


def test_hourly_job_refreshes_the_catalog_and_runs_its_checks(location: Any) -> None:
    """The hourly job materializes the catalog, no window, and runs six checks a timeframe."""
    defs = location.defs()
    schedule = defs.resolve_schedule_def("check_schedule")
    job = defs.resolve_job_def(schedule.job_name)
    done = job.execute_in_process(instance=location.instance)
    assert done.success
    assert len(done.get_asset_check_evaluations()) == 6 * len(TIMEFRAMES)
    keys = {event.asset_key for event in done.get_asset_materialization_events()}
    assert keys == {dg.AssetKey("bars_catalog")}


def test_a_run_that_loads_bars_reads_no_file_whole(location: Any) -> None:
    """Its integrity check names the files that are known to be damaged."""
    job = location.defs().resolve_implicit_global_asset_job_def()
    key = dg.AssetKey(["bars", "1d"])
    done = job.execute_in_process(
        instance=location.instance, asset_selection=[key], partition_key="AAPL|2025"
    )
    assert done.success
    checks = {one.check_name: one for one in done.get_asset_check_evaluations()}
    assert checks["file_integrity"].passed
    assert "files read in this run: 0" in str(checks["file_integrity"].description)
    assert location.store.ledger.checks.all() == {}
