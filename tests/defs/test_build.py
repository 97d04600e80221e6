"""The code location: assets, jobs and partitions, the universe sensor, the catalog asset."""

import base64
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from ktrdr_pipelines.defs.build import build_defs
from ktrdr_pipelines.defs.instance import is_materialize_command, register_symbols
from ktrdr_pipelines.defs.sensors.universe_sensor import partition_changes
from ktrdr_pipelines.domain.bars import STORED_SCHEMA
from ktrdr_pipelines.domain.timeframes import Timeframe
from ktrdr_pipelines.domain.universe.universe import parse_universe
from ktrdr_pipelines.errors import StoreError
from ktrdr_pipelines.settings import Settings


def test_location_holds_an_asset_a_timeframe_and_the_catalog(location: Any) -> None:
    """Eight assets of bars, and the catalog downstream of them all."""
    every = ", ".join(timeframe.value for timeframe in Timeframe)
    location.write_universe(f"defaults: {{timeframes: [{every}]}}\nsymbols: {{AAPL: {{}}}}")
    graph = location.defs().resolve_asset_graph()
    bars = {dg.AssetKey(["bars", timeframe.value]) for timeframe in Timeframe}
    assert set(graph.materializable_asset_keys) == bars | {dg.AssetKey("bars_catalog")}
    assert graph.get(dg.AssetKey("bars_catalog")).parent_keys == bars


def test_a_timeframe_without_symbols_has_no_asset(location: Any) -> None:
    """It would have no partition, and would look complete."""
    keys = location.defs().resolve_asset_graph().materializable_asset_keys
    assert keys == {
        dg.AssetKey(["bars", "1h"]),
        dg.AssetKey(["bars", "1d"]),
        dg.AssetKey("bars_catalog"),
    }


def test_location_loads_without_a_store(tmp_path: Path) -> None:
    """A fresh clone has no store, and its definitions are loadable."""
    defs = build_defs(Settings(ktrdr_data=tmp_path / "none", ktrdr_state=tmp_path / "state"))
    dg.Definitions.validate_loadable(defs)


def test_location_loads_although_the_ledger_is_damaged(loaded: Any) -> None:
    """Also if the universe needs it: for the last session of an instrument that ended."""
    loaded.write_universe("symbols: {AAPL: {start: 2023-03-01, ended: true}}")
    loaded.layout.ledger.write_bytes(b"no database" * 1000)
    for path in loaded.layout.ledger.parent.glob(f"{loaded.layout.ledger.name}-*"):
        path.unlink()
    with pytest.raises(StoreError):
        loaded.defs().resources["store"].universe()
    dg.Definitions.validate_loadable(loaded.defs())


def test_assets_show_what_a_dagster_user_expects(location: Any) -> None:
    """Columns, table, storage, owners, tags, freshness, and what lies upstream."""
    owned = location.settings.model_copy(update={"ktrdr_owners": "team:research, me@example.org"})
    graph = build_defs(owned).resolve_asset_graph()
    daily, hourly = (graph.get(dg.AssetKey(["bars", one])) for one in ("1d", "1h"))
    catalog = graph.get(dg.AssetKey("bars_catalog"))
    schema = daily.metadata["dagster/column_schema"]
    assert [one.name for one in schema.columns] == STORED_SCHEMA.names
    assert all(one.description for one in schema.columns)
    assert not schema.columns[0].constraints.nullable
    assert daily.metadata["dagster/table_name"] == "bars_1d"
    assert daily.metadata["dagster/storage_kind"] == "parquet"
    assert list(daily.owners) == ["team:research", "me@example.org"]
    assert daily.tags["ktrdr/timeframe"] == "1d"
    assert [bool(one.freshness_policy) for one in (daily, hourly, catalog)] == [True, False, True]
    upstream = {dg.AssetKey("gateway"), dg.AssetKey("universe")}
    assert daily.parent_keys == upstream
    assert all(graph.get(key).is_external for key in upstream)
    assert "coverage.png" not in catalog.description
    shown = build_defs(owned, shows_heatmap=True).resolve_asset_graph()
    assert "coverage.png" in shown.get(catalog.key).description


def test_no_job_is_named_over_partitioned_assets(location: Any) -> None:
    """The named jobs select no asset: they would lose partitions of a backfill."""
    jobs = {job.name: job for job in location.defs().resolve_all_job_defs()}
    named = {name: job for name, job in jobs.items() if not name.startswith("__")}
    assert set(named) == {"load_bars", "tails"}
    assert all(not job.asset_layer.executable_asset_keys for job in named.values())


def test_the_command_line_materializes_partitions_of_a_fresh_instance(
    location: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The symbols are partitions before the command looks for them; one run loads a range."""
    assert is_materialize_command(["/bin/dagster", "asset", "materialize", "--select", "bars/1d"])
    assert not is_materialize_command(["/bin/dagster", "asset", "list"])
    home = tmp_path / "home"
    home.mkdir()
    (home / "dagster.yaml").write_text("telemetry: {enabled: false}\n")
    monkeypatch.setenv("DAGSTER_HOME", str(home))
    register_symbols(location.layout)
    register_symbols(location.layout)
    with dg.DagsterInstance.get() as instance:
        assert instance.get_dynamic_partitions("symbols_1h") == ["AAPL", "MSFT"]
        assert instance.get_dynamic_partitions("symbols_1m") == []
    graph = build_defs(location.settings, in_one_run=True).resolve_asset_graph()
    assert graph.get(dg.AssetKey(["bars", "1d"])).backfill_policy.max_partitions_per_run is None


def test_windows_begin_where_the_universe_says(location: Any) -> None:
    """The first yearly window is the universe's."""
    graph = location.defs().resolve_asset_graph()
    partitions = graph.get(dg.AssetKey(["bars", "1d"])).partitions_def
    window = partitions.get_partitions_def_for_dimension("window")
    assert window.get_partition_keys()[0] == "2020"


def test_universe_sensor_adds_and_removes_symbols_by_timeframe() -> None:
    """Partitions follow the universe in each timeframe; equal ones need no request."""
    universe = parse_universe(
        "defaults: {timeframes: [1d]}\nsymbols: {AAPL: {}, EURUSD: {timeframes: [1h]}}", "here"
    )
    with dg.DagsterInstance.ephemeral() as instance:
        instance.add_dynamic_partitions("symbols_1d", ["GONE"])
        [change] = partition_changes(instance, universe, [Timeframe.D1])
        assert (change.added, change.removed) == (("AAPL",), ("GONE",))
        added, removed = change.requests()
        assert isinstance(added, dg.AddDynamicPartitionsRequest)
        assert isinstance(removed, dg.DeleteDynamicPartitionsRequest)
        instance.add_dynamic_partitions("symbols_1h", ["EURUSD"])
        others = partition_changes(instance, universe, [Timeframe.H1, Timeframe.M1])
        assert not any(others)


def test_universe_sensor_keeps_the_last_good_universe_after_a_bad_edit(location: Any) -> None:
    """A malformed universe changes no partition."""
    defs = location.defs()
    sensor = defs.resolve_sensor_def("universe_sensor")
    location.instance.delete_dynamic_partition("symbols_1d", "MSFT")

    def tick() -> Any:
        context = dg.build_sensor_context(
            instance=location.instance, resources=defs.resources, definitions=defs
        )
        return sensor(context)

    first = tick()
    assert [list(r.partition_keys) for r in first.dynamic_partitions_requests] == [["MSFT"]]
    location.instance.add_dynamic_partitions("symbols_1d", ["MSFT"])
    location.layout.universe.write_text("symbols: [", encoding="utf-8")
    bad = tick()
    assert bad.dynamic_partitions_requests == []
    assert "not YAML" in bad.skip_reason.skip_message


def test_universe_sensor_reports_its_changes_in_one_line(location: Any) -> None:
    """Added, removed and edited symbols are named with the reason."""
    defs = location.defs()
    sensor = defs.resolve_sensor_def("universe_sensor")

    def tick(cursor: str | None) -> Any:
        context = dg.build_sensor_context(
            instance=location.instance, resources=defs.resources, definitions=defs, cursor=cursor
        )
        return sensor(context)

    first = tick(None)
    assert first.skip_reason.skip_message == "the partitions match the universe"
    assert [one.asset_key.to_user_string() for one in first.asset_events] == ["universe"]
    assert tick(first.cursor).asset_events == []  # an event only where something has changed
    location.layout.universe.write_text(
        "defaults: {timeframes: [1d, 1h], start: 2023-03-01}\n"
        "symbols: {AAPL: {start: 2024-01-02}, TSLA: {}}",
        encoding="utf-8",
    )
    second = tick(first.cursor)
    text = second.skip_reason.skip_message
    assert "\n" not in text
    assert "added TSLA (1h, 1d): new in the universe" in text
    assert "removed MSFT (1h, 1d)" in text
    assert "their bars stay" in text
    assert "changed AAPL: their entries were edited" in text
    assert len(second.dynamic_partitions_requests) == 4
    [event] = second.asset_events
    assert event.metadata["symbols"].value == 2
    assert "added TSLA" in event.metadata["change"].value


def test_universe_sensor_reports_a_missing_store(tmp_path: Path) -> None:
    """Without a store the tick is skipped, with a hint."""
    defs = build_defs(Settings(ktrdr_data=tmp_path / "none", ktrdr_state=tmp_path / "state"))
    sensor = defs.resolve_sensor_def("universe_sensor")
    with dg.DagsterInstance.ephemeral() as instance:
        context = dg.build_sensor_context(instance=instance, resources=defs.resources)
        skipped = sensor(context)
    assert "ktrdr init" in str(skipped.skip_reason.skip_message)


def test_catalog_asset_builds_the_catalog_with_its_metadata(location: Any) -> None:
    """The catalog of an empty store is built, with a heatmap and the missing bars."""
    defs = location.defs()
    result = dg.materialize(
        list(defs.assets or []),
        selection=[dg.AssetKey("bars_catalog")],
        resources=defs.resources,
        instance=location.instance,
    )
    assert result.success
    assert location.layout.catalog.stat().st_size > 0
    [event] = result.asset_materializations_for_node("bars_catalog")
    image = str(event.metadata["heatmap"].value)
    code = image.removeprefix("![coverage](data:image/png;base64,").removesuffix(")")
    assert base64.b64decode(code, validate=True).startswith(b"\x89PNG")
    assert len(image) < 300_000
    assert "| AAPL 1d | 0 |" in str(event.metadata["coverage"].value)
    assert event.metadata["bars_missing"].value > 1000
    assert event.metadata["dagster/row_count"].value == 0
    assert location.layout.coverage_image.read_bytes() == base64.b64decode(code)
