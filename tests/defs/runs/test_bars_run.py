"""Runs over bars: what is loaded, what is materialized, what fails."""

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import dagster as dg
import pytest

from ktrdr_pipelines.defs.assets import is_range_gone, refuse_lost_range
from ktrdr_pipelines.defs.resources import StoreResource
from ktrdr_pipelines.defs.runs.tags import BACKFILL, KIND, RANGE_END, RANGE_START, RunKind
from ktrdr_pipelines.domain.planning.responses import BarRequest
from ktrdr_pipelines.domain.timeframes import Timeframe
from ktrdr_pipelines.errors import (
    EntitlementError,
    GatewayError,
    GatewayUnreachableError,
    RequestRejectedError,
)
from ktrdr_pipelines.store.catalog.catalog import query_catalog

FailureText = Callable[[Any], str]


def windows_of(result: Any, location: Any) -> dict[str, tuple[int, str]]:
    """Return rows and state of every window that a run materialized."""
    windows: dict[str, tuple[int, str]] = {}
    for timeframe in ("1d", "1h"):
        windows |= location.materialized(timeframe, result.run_id)
    return windows


def test_ranged_run_materializes_every_window_with_its_rows(location: Any) -> None:
    """Each window of each symbol gets one event, with its rows and state."""
    result = location.run("1d", "AAPL|2023", "MSFT|2026")
    assert result.success
    windows = windows_of(result, location)
    assert set(windows) == {f"{s}|{y}" for s in ("AAPL", "MSFT") for y in range(2023, 2027)}
    assert windows["AAPL|2024"] == (252, "complete")
    assert windows["AAPL|2025"] == (250, "complete")
    assert windows["MSFT|2026"][1] == "open"
    assert windows["MSFT|2026"][0] > 100


def test_run_is_planned_over_all_windows_of_a_symbol(location: Any) -> None:
    """Two years of hourly bars in two windows take the requests of one interval."""
    before = len(location.history())
    assert location.run("1h", "AAPL|2024", "AAPL|2025").success
    assert len(location.history()) - before <= 25


def test_window_before_the_start_is_materialized_without_a_request(location: Any) -> None:
    """It is explained: 0 rows, with the reason as its state."""
    before = len(location.gateway.requests)
    result = location.run("1d", "AAPL|2020", "AAPL|2022")
    assert result.success
    reason = "before the start that the universe gives"
    assert windows_of(result, location) == {
        f"AAPL|{year}": (0, reason) for year in (2020, 2021, 2022)
    }
    assert len(location.gateway.requests) == before


def test_second_run_sends_no_request_and_materializes_again(location: Any) -> None:
    """Covered windows are not requested again, and still get an event."""
    assert location.run("1d", "AAPL|2024", "AAPL|2025").success
    before = len(location.gateway.requests)
    again = location.run("1d", "AAPL|2024", "AAPL|2025")
    assert windows_of(again, location) == {
        "AAPL|2024": (252, "complete"),
        "AAPL|2025": (250, "complete"),
    }
    assert len(location.gateway.requests) == before


def test_unexplained_window_is_not_materialized_and_fails_the_run_by_name(
    location: Any, failure_text: FailureText, failing_ib: Callable[..., Any]
) -> None:
    """The other windows are materialized, and the failure says what is missing and why."""

    def fails(request: BarRequest) -> GatewayError | None:
        if request.ends_at is not None and request.ends_at < datetime(2025, 1, 2, tzinfo=UTC):
            return RequestRejectedError(str(request), reason="refused by the test")
        return None

    result = location.run("1d", "AAPL|2023", "AAPL|2025", ib=failing_ib(fails))
    assert not result.success
    assert "AAPL|2025" in windows_of(result, location)
    assert "AAPL|2024" not in windows_of(result, location)
    assert "\nAAPL 2024: " in failure_text(result)
    assert "refused by the test" in failure_text(result)


def test_blocked_symbol_does_not_stop_the_others(
    location: Any, failure_text: FailureText, failing_ib: Callable[..., Any]
) -> None:
    """A missing permission for one symbol fails its windows alone."""

    def fails(request: BarRequest) -> GatewayError | None:
        if request.series.symbol == "MSFT":
            return EntitlementError(str(request), reason="no market data permissions", code=354)
        return None

    result = location.run("1d", "AAPL|2024", "MSFT|2025", ib=failing_ib(fails))
    assert not result.success
    assert set(windows_of(result, location)) == {"AAPL|2024", "AAPL|2025"}
    assert "no market data permissions" in failure_text(result)


def test_unreachable_gateway_fails_the_run_with_a_hint(
    location: Any, failure_text: FailureText, failing_ib: Callable[..., Any]
) -> None:
    """No window is materialized, and the failure says what to do."""

    def fails(request: BarRequest) -> GatewayError | None:
        return GatewayUnreachableError(str(request), reason="gone", hint="Start the gateway")

    result = location.run("1d", "AAPL|2024", "AAPL|2024", ib=failing_ib(fails))
    assert not result.success
    assert windows_of(result, location) == {}
    assert "Start the gateway" in failure_text(result)


def test_symbol_that_is_not_in_the_universe_fails_by_name(
    location: Any, failure_text: FailureText
) -> None:
    """The failure names the partition."""
    location.layout.universe.write_text("symbols: {MSFT: {timeframes: [1d]}}", encoding="utf-8")
    result = location.run("1d", "AAPL|2024", "AAPL|2024")
    assert not result.success
    assert "AAPL" in failure_text(result)


def test_symbol_that_is_not_in_the_universe_does_not_stop_the_others(
    location: Any, failure_text: FailureText
) -> None:
    """A run of several symbols loads the others, and names the removed one."""
    location.layout.universe.write_text("symbols: {MSFT: {timeframes: [1d]}}", encoding="utf-8")
    result = location.run("1d", "AAPL|2024", "MSFT|2024")
    assert not result.success
    assert set(windows_of(result, location)) == {"MSFT|2024"}
    assert "AAPL 2024: " in failure_text(result)
    assert "the symbol is not in " in failure_text(result)


def test_file_that_cannot_be_read_does_not_stop_the_others(
    location: Any, failure_text: FailureText
) -> None:
    """Its windows fail with its name; windows of other symbols are materialized."""
    assert location.run("1d", "AAPL|2024", "AAPL|2024").success
    for path in location.layout.bar_files("AAPL", Timeframe.D1):
        path.write_bytes(b"no file of bars")
    result = location.run("1d", "AAPL|2024", "MSFT|2024")
    assert not result.success
    assert set(windows_of(result, location)) == {"MSFT|2024"}
    assert "AAPL 2024: " in failure_text(result)
    assert "symbol=AAPL/timeframe=1d/all.parquet" in failure_text(result)


def test_finished_windows_are_materialized_before_the_run_fails(
    location: Any, failing_ib: Callable[..., Any]
) -> None:
    """A gateway that becomes unreachable in the oldest window leaves the newer ones complete."""

    def fails(request: BarRequest) -> GatewayError | None:
        if request.ends_at is not None and request.ends_at < datetime(2023, 12, 15, tzinfo=UTC):
            return GatewayUnreachableError(str(request), reason="gone", hint="Start the gateway")
        return None

    result = location.run("1h", "AAPL|2023", "AAPL|2025", ib=failing_ib(fails))
    assert not result.success
    assert set(windows_of(result, location)) == {"AAPL|2024", "AAPL|2025"}


def test_a_backfill_renews_the_catalog_once_after_its_last_run(location: Any) -> None:
    """Runs that others follow leave it as it is, and so does one that had nothing to request."""

    def run(window: str, **tags: str) -> bool:
        """Run one window, and return whether that renewed the catalog."""
        before = location.layout.catalog.stat().st_mtime_ns
        ends = dict.fromkeys((RANGE_START, RANGE_END), f"AAPL|{window}")
        assert location.run_tagged("1d", {**ends, **tags}).success
        return bool(location.layout.catalog.stat().st_mtime_ns != before)

    assert location.run("1d", "AAPL|2023", "AAPL|2023").success
    assert not run("2023")
    of_backfill = {BACKFILL: "one"}
    for key in ("downstream", "bars/1d"):
        selected = frozenset({dg.AssetKey(key.split("/"))})
        made = dg.DagsterRun("bars", tags=of_backfill, asset_selection=selected)
        second = location.instance.add_run(made)
    assert not run("2024", **of_backfill)
    location.instance.delete_run(second.run_id)  # it begins
    assert run("2023", **of_backfill)  # what follows of other assets loads no bars


def test_catalog_has_the_bars_after_a_run(location: Any) -> None:
    """A run refreshes the catalog."""
    assert location.run("1d", "AAPL|2024", "AAPL|2024").success
    found = query_catalog(location.layout, "SELECT count(*) AS n FROM series('AAPL', '1d')")
    assert found["n"].to_pylist() == [252]


def test_range_that_lost_its_partitions_fails() -> None:
    """Tags of a range with the key of one window would report success for windows not loaded."""
    tags = {
        "dagster/asset_partition_range_start": "AAPL|2024-01",
        "dagster/asset_partition_range_end": "AAPL|2024-03",
    }
    with pytest.raises(dg.Failure, match="2024-03"):
        refuse_lost_range(tags, ["AAPL|2024-01"])


def test_single_partitions_and_whole_ranges_are_accepted() -> None:
    """A run of one partition, tagged or not, and a range with all its keys."""
    same = {
        "dagster/asset_partition_range_start": "AAPL|2024",
        "dagster/asset_partition_range_end": "AAPL|2024",
    }
    refuse_lost_range({}, ["AAPL|2024"])
    refuse_lost_range(same, ["AAPL|2024"])
    refuse_lost_range(
        {**same, "dagster/asset_partition_range_end": "AAPL|2025"}, ["AAPL|2024", "AAPL|2025"]
    )


class ShrinkingStore(StoreResource):
    """A store resource that removes the partitions of a symbol when a run begins."""

    def setup_for_execution(self, context: dg.InitResourceContext) -> None:
        assert context.instance is not None
        context.instance.delete_dynamic_partition("symbols_1d", "AAPL")


@pytest.mark.parametrize("by_sensor", [True, False])
def test_run_whose_symbol_was_removed_while_it_was_queued(
    location: Any, failure_text: FailureText, by_sensor: bool
) -> None:
    """A sensor's run succeeds without a load, a user's run fails with the reason."""
    before = len(location.history())
    kind = {KIND: RunKind.GAP.value} if by_sensor else {}
    tags = {RANGE_START: "AAPL|2024", RANGE_END: "AAPL|2025", **kind}
    store = ShrinkingStore(data_dir=str(location.layout.root))
    result = location.run_tagged("1d", tags, store=store)
    assert result.success is by_sensor
    assert windows_of(result, location) == {}
    assert len(location.history()) == before
    if not by_sensor:
        assert "universe.yaml changed after this run was launched" in failure_text(result)


def test_range_is_gone_if_windows_begin_later_now(location: Any) -> None:
    """A range is gone if its first or last window is no partition any more."""
    instance, windows = location.instance, location.windows()
    for first, last, is_gone in [("2019", "2024", True), ("2020", "2024", False)]:
        tags = {RANGE_START: f"AAPL|{first}", RANGE_END: f"AAPL|{last}"}
        assert is_range_gone(instance, tags, Timeframe.D1, windows) is is_gone
    assert not is_range_gone(instance, {}, Timeframe.D1, windows)


def run_with_others(location: Any, **overrides: Any) -> Any:
    """Run three windows together with the checks of the asset and an asset downstream."""
    defs = location.defs(**overrides)

    @dg.asset(deps=[dg.AssetKey(["bars", "1d"])])
    def features() -> None:
        """Depend on bars."""

    bars = dg.AssetSelection.assets(["bars", "1d"])
    return dg.materialize(
        [*(defs.assets or []), *(defs.asset_checks or []), features],
        selection=bars | dg.AssetSelection.checks_for_assets(["bars", "1d"]) | bars.downstream(),
        resources=defs.resources,
        instance=location.instance,
        tags={RANGE_START: "AAPL|2023", RANGE_END: "AAPL|2025"},
        raise_on_error=False,
    )


def test_checks_and_downstream_assets_of_the_same_run_are_executed(location: Any) -> None:
    """Each window has one event, recorded before the step ends."""
    result = run_with_others(location)
    assert result.success
    events = [event.event_type_value for event in result.all_events]
    assert set(location.materialized("1d", result.run_id)) == {
        "AAPL|2023",
        "AAPL|2024",
        "AAPL|2025",
    }
    assert result.asset_materializations_for_node("features")
    assert result.asset_materializations_for_node("bars_catalog")
    checks = {one.check_name for one in result.get_asset_check_evaluations()}
    assert {"unexplained_gaps", "tail_is_fresh", "file_integrity"} <= checks
    assert "STEP_SKIPPED" not in events


def test_nothing_downstream_is_executed_after_a_run_with_unexplained_windows(
    location: Any, failure_text: FailureText, failing_ib: Callable[..., Any]
) -> None:
    """The windows that are finished have their event."""

    def fails(request: BarRequest) -> GatewayError | None:
        if request.ends_at is not None and request.ends_at < datetime(2025, 1, 2, tzinfo=UTC):
            return RequestRejectedError(str(request), reason="refused by the test")
        return None

    result = run_with_others(location, ib=failing_ib(fails))
    assert not result.success
    assert set(location.materialized("1d", result.run_id)) == {"AAPL|2025"}
    assert "\nAAPL 2024: " in failure_text(result)
    assert not result.asset_materializations_for_node("features")
    assert not result.get_asset_check_evaluations()
