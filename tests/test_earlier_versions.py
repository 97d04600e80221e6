"""Stores of earlier versions: they open, lose nothing, and loads continue from them."""

import hashlib
import json
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import dagster as dg
import duckdb
import pytest

from ktrdr_pipelines import DataManager, IbService, open_store
from ktrdr_pipelines.defs.build import build_defs
from ktrdr_pipelines.defs.partitions import BarPartition
from ktrdr_pipelines.domain.timeframes import Timeframe
from ktrdr_pipelines.settings import load_settings
from ktrdr_pipelines.simulator.server import SimulatorServer, running_simulator
from ktrdr_pipelines.store.ledger.schema import LEDGER_VERSION
from tests.support.archives import unpack
from tests.support.command_line import CommandResult, Ktrdr, ktrdr_in_process

FIXTURES = Path(__file__).parent / "fixtures"
BARS: dict[str, dict[str, Any]] = json.loads((FIXTURES / "store_v6_bars.json").read_text())
"""The bars of the symbols of the universe, which are the same in all stores."""

VERSIONS = (6, 7, 8, 9, 10)
"""The versions of the ledger of which a store was kept."""

FIRST_SPLIT = 10
"""The first version whose store has bars of a symbol that was split, and left the universe."""

FIRST_WITH_BASIS = 10
"""The first version whose bar files have digests and the price basis of their bars."""

NOW = datetime(2024, 1, 5, 22, tzinfo=UTC)
"""A day after the store was left: an hour after the close of a Friday in New York."""

COLUMNS = "ts, session_date, open, high, low, close, volume, average, bar_count"

KEPT = ("attempts", "requests", "ranges", "instruments", "revisions", "confirmed", "schedules")
"""Tables that say what cannot be learned from the bar files."""


@pytest.fixture(scope="module")
def gateway() -> Iterator[SimulatorServer]:
    """Run the gateway that the store was loaded from, a day later."""
    with running_simulator(now=NOW) as server:
        yield server


def copy_store(version: int, root: Path) -> None:
    """Copy a store of an earlier version, and its Dagster home."""
    if version == VERSIONS[0]:
        shutil.copytree(FIXTURES / "store_v6", root)
    name = "dagster_v6.tar.gz" if version == VERSIONS[0] else f"store_v{version}.tar.gz"
    unpack(FIXTURES / name, root)


OLDEST_AND_NEWEST = (VERSIONS[0], VERSIONS[-1])
"""The versions of the plain suite: stores of the others differ from these by parts of each."""


@pytest.fixture(
    params=[
        pytest.param(one, marks=[] if one in OLDEST_AND_NEWEST else [pytest.mark.slow])
        for one in VERSIONS
    ],
    ids="version {}".format,
)
def version(request: pytest.FixtureRequest) -> int:
    """Return the version of the ledger that the store has."""
    return int(request.param)


@pytest.fixture
def store(
    version: int, tmp_path: Path, gateway: SimulatorServer, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """Copy the store of an earlier version, and make the settings name it, on its last day."""
    root = tmp_path / "data"
    copy_store(version, root)
    monkeypatch.setenv("KTRDR_DATA", str(root))
    monkeypatch.setenv("KTRDR_STATE", str(tmp_path / "state"))
    monkeypatch.setenv("IB_PORT", str(gateway.port))
    monkeypatch.setenv("IB_MAX_RETRIES", "0")
    offset_s = (NOW - datetime.now(tz=UTC)).total_seconds()
    monkeypatch.setenv("KTRDR_CLOCK_OFFSET_S", str(offset_s))
    return root


@pytest.fixture
def ktrdr(store: Path, capsys: pytest.CaptureFixture[str]) -> Ktrdr:
    """Return a function that runs a command line over the copy, as the entry point does."""
    in_process = ktrdr_in_process(capsys)

    def command(*arguments: str) -> CommandResult:
        result = in_process(*arguments)
        assert "Traceback" not in result.all
        return result

    return command


def rows_of(ledger: Path) -> dict[str, set[tuple[Any, ...]]]:
    """Return the rows of the tables that must be kept, by the columns that every version has.

    Hashes of accounts are not among them: they are gone from version 8 on.
    """
    with closing(sqlite3.connect(FIXTURES / "store_v6" / "state" / "ledger.sqlite")) as old:
        columns = {
            table: [
                row[1]
                for row in old.execute(f"PRAGMA table_info({table})")
                if row[1] != "account_hash"
            ]
            for table in KEPT
        }
    with closing(sqlite3.connect(ledger)) as connection:
        return {
            table: set(connection.execute(f"SELECT {', '.join(names)} FROM {table}"))  # noqa: S608
            for table, names in columns.items()
        }


def version_of(ledger: Path) -> int:
    """Return the version that a ledger says it has."""
    with closing(sqlite3.connect(ledger)) as connection:
        return int(connection.execute("PRAGMA user_version").fetchone()[0])


def has_disagreements(ledger: Path) -> bool:
    """Return whether a migrated ledger lists bars that were returned at other prices."""
    with closing(sqlite3.connect(ledger)) as connection:
        return bool(connection.execute("SELECT count(*) FROM disagreements").fetchone()[0])


def held(store: Path) -> dict[str, dict[str, Any]]:
    """Return rows, bounds and digest of the bars of each series, read without the project."""
    found = {}
    for folder in sorted(store.glob("bars/symbol=*/timeframe=*")):
        symbol, timeframe = (part.partition("=")[2] for part in folder.parts[-2:])
        with duckdb.connect() as connection:
            connection.execute("SET TimeZone = 'UTC'")
            bars = connection.execute(
                f"SELECT {COLUMNS} FROM read_parquet('{folder}/*.parquet') ORDER BY ts"  # noqa: S608
            ).fetchall()
        found[f"{symbol}|{timeframe}"] = bars
    return {key: facts_of(bars) for key, bars in found.items()}


def expected(version: int) -> dict[str, dict[str, Any]]:
    """Return the facts of all bars of the store of a version, as they were when it was made."""
    found: dict[str, dict[str, Any]] = json.loads(
        (FIXTURES / f"store_v{version}_bars.json").read_text()
    )
    assert {key: found[key] for key in BARS} == BARS
    assert len(found) == len(BARS) + (version >= FIRST_SPLIT)
    return found


def facts_of(bars: list[tuple[Any, ...]]) -> dict[str, Any]:
    """Return the facts that the fixture has of the bars of a series."""
    text = "\n".join(
        "|".join(str(v.astimezone(UTC) if isinstance(v, datetime) else v) for v in bar)
        for bar in bars
    )
    return {
        "rows": len(bars),
        "first": bars[0][0].astimezone(UTC).isoformat(),
        "last": bars[-1][0].astimezone(UTC).isoformat(),
        "digest": hashlib.sha256(text.encode()).hexdigest(),
    }


def test_reading_commands_migrate_the_ledger(store: Path, ktrdr: Ktrdr, version: int) -> None:
    """Neither bars nor rows of the ledger are lost."""
    ledger = store / "state" / "ledger.sqlite"
    assert version_of(ledger) == version
    before = rows_of(ledger)
    status = ktrdr("status", "--json")
    assert status.code == (3 if has_disagreements(ledger) else 0)
    assert version_of(ledger) == LEDGER_VERSION
    rows = {f"{one['symbol']}|{one['timeframe']}": one["bars"] for one in status.document["series"]}
    assert {key: rows[key] for key in BARS} == {key: one["rows"] for key, one in BARS.items()}
    assert [ktrdr("gaps").code, ktrdr("plan").code] == [3, 0]
    after = rows_of(ledger)
    assert {table: before[table] - after[table] for table in KEPT} == {
        table: set() for table in KEPT
    }
    assert held(store) == expected(version)


def files_of(store: Path) -> dict[str, bytes]:
    """Return the content of the marker and of all bar files."""
    paths = [store / "store.json", *store.glob("bars/*/*/*.parquet")]
    return {str(path.relative_to(store)): path.read_bytes() for path in paths}


def test_programs_read_every_series(store: Path, version: int) -> None:
    """Bars are those that were kept, and all symbols are listed; no bar file changes."""
    before = files_of(store)
    opened, columns = open_store(), COLUMNS.split(", ")
    for key, facts in expected(version).items():
        symbol, timeframe = key.split("|")
        bars = opened.read_bars(symbol, timeframe, raw=True, columns=columns, engine="arrow")
        rows = zip(*(bars[one].to_pylist() for one in columns), strict=True)
        assert facts_of([*rows]) == facts, key
    symbols = sorted({key.split("|")[0] for key in expected(version)})
    assert opened.symbols() == [one.symbol for one in IbService().symbols()] == symbols
    assert opened.is_ready("AAPL", "1d", "2023-12-27", "2024-01-05")
    assert set(opened.gaps("AAPL", "1d")["reason"]) == {"missing"}
    assert not DataManager().load("AAPL", "1d").attrs["complete"]
    assert files_of(store) == before


READING = (("status",), ("gaps",), ("plan",), ("verify",), ("query", "FROM bars LIMIT 1"))


def test_reading_changes_no_bar_file_and_a_load_makes_earlier_programs_refuse_the_store(
    store: Path, ktrdr: Ktrdr, version: int
) -> None:
    """A query works before and after, in a DuckDB shell too; only changed files are rewritten."""
    before = files_of(store)
    old = 2 if version >= FIRST_WITH_BASIS else 1
    for command in READING:
        assert ktrdr(*command).code in {0, 3}, command
    assert files_of(store) == before
    assert json.loads(before["store.json"])["format_version"] == old
    count = "SELECT count(*) FROM {} WHERE symbol = 'AAPL' AND session_date < '2024-01-05'"
    for is_loaded in (False, True):
        with closing(duckdb.connect(str(store / "ktrdr.duckdb"), read_only=True)) as shell:
            for source in ("bars_1d", "series('AAPL', '1d')", "raw_1d"):
                (found,) = shell.execute(count.format(source)).fetchone() or ()
                assert found == BARS["AAPL|1d"]["rows"], source
        if not is_loaded:
            wanted = ("AAPL", "1d", "--start", "2023-12-27", "--end", "2024-01-06")
            assert ktrdr("load", *wanted).code == 0
    after = files_of(store)
    assert json.loads(after["store.json"])["format_version"] == 2
    changed = {name for name, content in after.items() if before.get(name) != content}
    daily = "bars/symbol=AAPL/timeframe=1d/all.parquet"
    assert changed == {daily, "store.json"} - ({"store.json"} if old == 2 else set())


def test_gaps_are_the_ranges_never_loaded(ktrdr: Ktrdr) -> None:
    """Each has a reason, and failed attempts have the time of the next."""
    document = ktrdr("gaps", "AAPL", "--json").document
    gaps = [one for one in document["gaps"] if one["timeframe"] == "1m"]
    missing = [(one["start"], one["end"]) for one in gaps]
    assert all(end <= "2023-12-28" or start >= "2024-01-04" for start, end in missing), missing
    assert any(start < "2023-12-28" for start, _ in missing)
    assert any(start >= "2024-01-04" for start, _ in missing)
    assert all(one["reason"] and one["detail"] for one in document["gaps"])
    assert any(one["next_try_at"] for one in gaps)
    daily = [one for one in document["gaps"] if one["timeframe"] == "1d"]
    assert [one["start"][:10] for one in daily] == ["2024-01-05"]


def test_verify_reads_every_bar_and_finds_no_damage(
    store: Path, ktrdr: Ktrdr, version: int
) -> None:
    """Files are intact; missing bars make it incomplete."""
    result = ktrdr("verify", "--json")
    assert result.code == 3
    certificates = result.document["certificates"]
    assert all(one["sound"] for one in certificates), certificates
    assert sum(one["bars"] for one in certificates) == sum(one["rows"] for one in BARS.values())
    assert {one["revisions"] for one in certificates if one["timeframe"] == "1d"} == {0, 2}
    assert held(store) == expected(version)


def test_repair_keeps_bars_and_rebuilds_the_catalog(
    store: Path, ktrdr: Ktrdr, version: int
) -> None:
    """The catalog has the bars, and the coverage with the week that is confirmed empty."""
    repaired = ktrdr("repair", "--json")
    assert repaired.code == 0
    assert repaired.document["files"] == 8 + (version >= FIRST_SPLIT)
    assert repaired.document["quarantined"] == []
    assert held(store) == expected(version)
    counted = ktrdr(
        "query",
        "SELECT symbol, timeframe, count(*) AS rows FROM raw GROUP BY ALL ORDER BY ALL",
        "--json",
    )
    assert counted.code == 0, counted.err
    rows = counted.document["rows"]
    assert {f"{one['symbol']}|{one['timeframe']}": one["rows"] for one in rows} == {
        key: one["rows"] for key, one in expected(version).items()
    }
    empty = ktrdr(
        "query",
        "SELECT symbol, timeframe, starts::DATE::VARCHAR AS first FROM coverage "
        "WHERE verdict = 'empty'",
        "--json",
    )
    assert empty.document["rows"] == [{"symbol": "THIN", "timeframe": "1h", "first": "2023-12-18"}]


def test_repair_adds_digests_with_seal(
    store: Path, ktrdr: Ktrdr, gateway: SimulatorServer, version: int
) -> None:
    """No bar and no coverage changes, so nothing is requested again.

    Files of versions 8 and 9 have digests already, and get the price basis of their bars.
    """
    assert ktrdr("repair", "--json").document["sealed"] == []
    result = ktrdr("repair", "--seal", "--json").document
    older = 8 if version < FIRST_WITH_BASIS else 0
    assert (len(result["sealed"]), result["quarantined"], result["fixed"]) == (older, [], [])
    assert held(store) == expected(version)
    certificates = ktrdr("verify", "--json").document["certificates"]
    assert all(one["sound"] for one in certificates)
    assert ktrdr("repair", "--seal", "--json").document["sealed"] == []
    first = len(gateway.requests)
    wanted = ("AAPL,THIN", "1m", "--start", "2023-12-28", "--end", "2024-01-04")
    assert ktrdr("load", *wanted).code == 0
    assert [one for one in gateway.requests[first:] if one.bar_size] == []


def test_repair_without_the_ledger_keeps_all_bars(store: Path, ktrdr: Ktrdr, version: int) -> None:
    """A lost ledger loses no bar."""
    (store / "state" / "ledger.sqlite").unlink()
    assert ktrdr("repair").code == 0
    assert ktrdr("verify").code == 3
    assert held(store) == expected(version)


SPLIT_BARS = """
SELECT r.ts, r.basis, b.close / r.close AS price, b.volume / r.volume AS volume
FROM raw_1d AS r LEFT JOIN bars_1d AS b USING (symbol, ts) WHERE symbol = 'SPLT' ORDER BY ts
"""


@pytest.mark.parametrize("lost", ["nothing", "ledger.sqlite", "SPLT.json"])
def test_bars_of_several_price_bases_are_read_on_one(
    store: Path, ktrdr: Ktrdr, version: int, lost: str
) -> None:
    """Three were requested before a split of 4:1, two after it; the basis of one is unknown."""
    if version < FIRST_SPLIT:
        pytest.skip("it has no split")
    for path in store.rglob(lost):
        path.unlink()
        assert ktrdr("repair").code == 0
    found = ktrdr("query", SPLIT_BARS, "--json").rows
    assert [(one["basis"], one["price"], one["volume"]) for one in found] == [
        *[(0, 0.25, 4.0)] * 3,
        *[(1, 1.0, 1.0)] * 2,
        (-1, None, None),
    ]
    (split,) = ktrdr("query", "FROM adjustments", "--json").rows
    assert (split["symbol"], split["ratio"], split["is_estimated"]) == ("SPLT", 0.25, True)


def test_stored_bars_are_not_requested_again(ktrdr: Ktrdr, gateway: SimulatorServer) -> None:
    """The coverage of every version is understood."""
    first = len(gateway.requests)
    for timeframe, start, end in (
        ("1m", "2023-12-28", "2024-01-04"),
        ("1h", "2023-12-27", "2024-01-05"),
        ("1d", "2023-12-27", "2024-01-05"),
    ):
        result = ktrdr("load", "AAPL,THIN", timeframe, "--start", start, "--end", end, "--json")
        assert result.code == 0, result.out + result.err
    assert [one for one in gateway.requests[first:] if one.bar_size] == []


def test_a_load_requests_only_missing_sessions(
    store: Path, ktrdr: Ktrdr, gateway: SimulatorServer
) -> None:
    """One or two requests return two sessions of six; a second load sends none."""
    first = len(gateway.requests)
    wanted = ("AAPL", "1m", "--start", "2023-12-28", "--end", "2024-01-06")
    result = ktrdr("load", *wanted, "--json")
    assert result.code == 0, result.out + result.err
    requests = [one for one in gateway.requests[first:] if one.bar_size == "1 min"]
    assert 1 <= len(requests) <= 2, requests
    assert all(one.duration in {"1 D", "2 D", "3 D"} for one in requests), requests
    bars = held(store)
    assert bars["AAPL|1m"]["rows"] == 6 * 390
    assert {key: bars[key] for key in BARS if key != "AAPL|1m"} == {
        key: one for key, one in BARS.items() if key != "AAPL|1m"
    }
    with duckdb.connect() as connection:
        connection.execute("SET TimeZone = 'UTC'")
        old = connection.execute(
            f"SELECT {COLUMNS} FROM read_parquet('{store}/bars/symbol=AAPL/timeframe=1m/*') "  # noqa: S608
            "WHERE session_date < '2024-01-04' ORDER BY ts"
        ).fetchall()
    assert facts_of(old) == BARS["AAPL|1m"]
    first = len(gateway.requests)
    assert ktrdr("load", *wanted).code == 0
    assert [one for one in gateway.requests[first:] if one.bar_size] == []


def test_a_load_completes_the_store(store: Path, ktrdr: Ktrdr, gateway: SimulatorServer) -> None:
    """It ignores failed attempts of the earlier version; a second load sends no request."""
    result = ktrdr("load", "AAPL", "1m,1h,1d", "--json")
    assert result.code == 0, result.out + result.err
    assert ktrdr("gaps", "AAPL").code == 0
    first = len(gateway.requests)
    assert ktrdr("load", "AAPL", "1m,1h,1d").code == 0
    assert [one for one in gateway.requests[first:] if one.bar_size] == []


# --- Dagster ------------------------------------------------------------------------------------


@pytest.fixture
def instance(store: Path) -> Iterator[dg.DagsterInstance]:
    """Open the Dagster home of the store."""
    with dg.DagsterInstance.from_config(str(store / "dagster")) as instance:
        yield instance


def sensor_of(definitions: dg.Definitions, name: str) -> dg.SensorDefinition:
    """Return a sensor of the code location."""
    [found] = [one for one in definitions.sensors or () if one.name == name]
    assert isinstance(found, dg.SensorDefinition)
    return found


def test_dagster_knows_partitions_events_and_the_run_of_the_earlier_version(
    store: Path, instance: dg.DagsterInstance
) -> None:
    """Keys of assets and partitions are unchanged, so no window becomes unmaterialized.

    Except for 1m, whose windows were months. Timeframes that no symbol has any more have no asset;
    their events stay.
    """
    definitions = build_defs(load_settings())
    repository = definitions.get_repository_def()
    defined = {key for key in repository.asset_graph.get_all_asset_keys() if key.path[0] == "bars"}
    assert {key.path[1] for key in defined} == {"1m", "5m", "15m", "1h", "1d"}
    for key in (dg.AssetKey(["bars", one.value]) for one in Timeframe):
        if key not in defined:
            assert len(instance.get_materialized_partitions(key)) == 1
            continue
        partitions = repository.asset_graph.get(key).partitions_def
        assert partitions is not None
        [result] = instance.get_materialized_partitions(key)
        is_monthly = BarPartition.of(result).is_monthly
        assert is_monthly is (key.path[1] == "1m")
        if not is_monthly:
            assert result in partitions.get_partition_keys(dynamic_partitions_store=instance)
        assert instance.get_dynamic_partitions(f"symbols_{key.path[1]}") == ["AAPL", "THIN"]
    assert instance.get_latest_materialization_event(dg.AssetKey(["bars_catalog"])) is not None
    [run] = instance.get_runs()
    assert run.is_success


@pytest.mark.slow
def test_years_of_minutes_are_materialized_in_place_of_months(
    store: Path, instance: dg.DagsterInstance, ktrdr: Ktrdr
) -> None:
    """The report sensor takes them from the store; the month of the earlier version stays known."""
    key = dg.AssetKey(["bars", "1m"])
    [month] = instance.get_materialized_partitions(key)
    assert ktrdr("load", "AAPL", "1m", "--start", "2023-01-01").code == 0
    definitions = build_defs(load_settings())
    with dg.build_sensor_context(
        instance=instance, resources=definitions.resources, definitions=definitions
    ) as context:
        sensor_of(definitions, "report_sensor")(context)
    found = set(instance.get_materialized_partitions(key))
    partitions = definitions.get_repository_def().asset_graph.get(key).partitions_def
    assert partitions is not None
    known = set(partitions.get_partition_keys(dynamic_partitions_store=instance))
    assert "AAPL|2023" in found - {month}
    assert found - {month} <= known
    [event] = instance.fetch_materializations(
        dg.AssetRecordsFilter(asset_key=key, asset_partitions=["AAPL|2023"]), limit=1
    ).records
    assert event.asset_materialization is not None
    assert event.asset_materialization.metadata["state"].value == "complete"


@pytest.mark.parametrize("name", ["gap_sensor", "report_sensor", "alert_sensor"])
def test_sensors_continue_from_earlier_cursors(
    store: Path, instance: dg.DagsterInstance, name: str
) -> None:
    """A cursor is read, and one that has at least its fields is written."""
    definitions = build_defs(load_settings())
    [state] = [one for one in instance.all_instigator_state() if one.name == name]
    cursor = state.instigator_data.cursor  # type: ignore[union-attr]
    assert cursor
    with dg.build_sensor_context(
        instance=instance,
        resources=definitions.resources,
        definitions=definitions,
        cursor=cursor,
    ) as context:
        result = sensor_of(definitions, name)(context)
    assert isinstance(result, dg.SensorResult)
    assert result.cursor is not None
    assert json.loads(result.cursor).keys() >= json.loads(cursor).keys()


def test_the_gap_sensor_requests_runs_for_missing_bars(
    store: Path, instance: dg.DagsterInstance
) -> None:
    """Stored bars cause no run."""
    definitions = build_defs(load_settings())
    with dg.build_sensor_context(
        instance=instance, resources=definitions.resources, definitions=definitions
    ) as context:
        result = sensor_of(definitions, "gap_sensor")(context)
    assert isinstance(result, dg.SensorResult)
    requests = {
        (symbol, run.tags["ktrdr/timeframe"])
        for run in result.run_requests
        for symbol in run.tags["ktrdr/symbol"].split("+")
    }
    assert ("AAPL", "1m") in requests
    assert ("AAPL", "1d") not in requests
