"""The report sensor materializes windows that are complete and unknown to Dagster, no others."""

from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from itertools import count
from typing import Any

import dagster as dg
import pyarrow as pa
import pytest

from ktrdr_pipelines.defs.runs.tags import KIND, QUIET
from ktrdr_pipelines.defs.sensors.materialization_sensor import report_sensor
from ktrdr_pipelines.defs.sensors.run_history_sensor import QUIET_KEPT, prune_history
from ktrdr_pipelines.domain.coverage import Coverage
from ktrdr_pipelines.domain.intervals import Interval, IntervalSet
from ktrdr_pipelines.store.maintenance.rename import rename
from ktrdr_pipelines.store.rebasing import adjust

NOW = datetime(2026, 6, 12, 12, tzinfo=UTC)
KEY = dg.AssetKey(["bars", "1d"])
BEFORE = "before the start that the universe gives"


@pytest.fixture
def tick(loaded: Any) -> Callable[..., str]:
    """Return a function that ticks the sensor and returns its message.

    ``in_time`` is how many windows and series a tick reports before it runs out of time.
    """
    cursor: list[str] = []

    def run(now: datetime = NOW, in_time: int = 1000) -> str:
        moments = iter(float(second > in_time) * 1000 for second in count())
        defs = loaded.defs()
        context = dg.build_sensor_context(
            instance=loaded.instance,
            resources=defs.resources,
            cursor=cursor[-1] if cursor else None,
        )
        sensor = report_sensor(loaded.windows(), lambda: now, lambda: next(moments))
        result: Any = sensor(context)
        cursor.append(result.cursor)
        return str(result.skip_reason.skip_message)

    return run


def test_windows_that_dagster_does_not_know_are_reported(
    loaded: Any, tick: Callable[..., str]
) -> None:
    """Complete and explained windows of a store that is new to Dagster, as a run has them."""
    assert loaded.run("1d", "AAPL|2023", "MSFT|2026").success
    by_run = loaded.materialized("1d")
    loaded.instance.wipe_assets([KEY])
    text = tick()
    assert "examined 4 of 4 series" in text
    explained = {
        f"{symbol}|{year}": (0, BEFORE)
        for symbol in ("AAPL", "MSFT")
        for year in (2020, 2021, 2022)
    }
    assert loaded.materialized("1d") == by_run | explained
    assert by_run["AAPL|2024"] == (252, "complete")
    assert "reported 0 windows" in tick()


def test_windows_before_the_start_are_reported_once_a_bar_is_saved(
    loaded: Any, tick: Callable[..., str]
) -> None:
    """Without a bar of that timeframe nothing is; a run that was launched for one reports it."""
    before = {f"MSFT|{year}" for year in (2020, 2021, 2022)}
    tick()
    assert before <= set(loaded.materialized("1d"))
    assert not before & set(loaded.materialized("1h"))
    assert loaded.run("1h", "MSFT|2022", "MSFT|2022").success
    assert loaded.materialized("1h")["MSFT|2022"] == (0, BEFORE)
    assert loaded.run("1h", "MSFT|2026", "MSFT|2026").success
    tick()
    assert before <= set(loaded.materialized("1h"))


def test_materializations_have_the_adjustments_of_their_symbol(
    loaded: Any, tick: Callable[..., str]
) -> None:
    """Those of runs and of the sensor: how many are in force, and the last of them."""
    for ratio, day in ((0.25, 10), (0.5, 11)):
        adjust(
            loaded.store,
            "AAPL",
            ratio=ratio,
            volume_ratio=1 / ratio,
            effective=date(2024, 6, day),
            note="split",
            now=NOW,
        )
    assert loaded.run("1d", "AAPL|2024", "AAPL|2024").success
    tick()
    events = loaded.instance.fetch_materializations(KEY, limit=1000).records
    found = {
        str(one.partition_key): {
            name: value.value
            for name, value in one.asset_materialization.metadata.items()
            if "adjustment" in name
        }
        for one in events
    }
    expected = {
        "adjustments": 2,
        "last_adjustment_ratio": 0.5,
        "last_adjustment_effective": "2024-06-11",
    }
    assert found["AAPL|2024"] == found["AAPL|2025"] == expected
    assert found["MSFT|2024"] == {"adjustments": 0}


def test_a_tick_that_runs_out_of_time_is_continued(loaded: Any, tick: Callable[..., str]) -> None:
    """Later ticks report the rest, and nothing twice."""

    def reported_by(text: str) -> int:
        return int(text.split("reported ")[1].split(maxsplit=1)[0])

    whole = reported_by(tick())
    loaded.instance.wipe_assets([KEY, dg.AssetKey(["bars", "1h"])])
    parts = [reported_by(tick(in_time=4)) for _ in range(12)]
    assert 0 < max(parts) < 4
    assert sum(parts) == whole > 10
    assert reported_by(tick()) == 0


def test_a_window_with_a_gap_is_not_reported(
    loaded: Any, tick: Callable[..., str], remove: Callable[..., int]
) -> None:
    """A year that lacks one session is not materialized, closed or open; its neighbours are."""
    assert remove(loaded, "AAPL", "1d", [date(2024, 7, 5), date(2026, 5, 5)]) == 2
    tick()
    windows = loaded.materialized("1d")
    assert "AAPL|2024" not in windows
    assert {"AAPL|2023", "AAPL|2025"} <= set(windows)
    assert "AAPL|2026" not in windows


def test_a_window_reported_as_open_is_reported_again_when_it_is_finished(
    loaded: Any, tick: Callable[..., str]
) -> None:
    """The event of a finished year has its final rows."""
    loaded.write_universe(
        "defaults: {timeframes: [1d], start: 2026-06-01}\nwindows: {yearly: 2026}\n"
        "symbols: {AAPL: {}}"
    )
    tick()
    assert loaded.materialized("1d")["AAPL|2026"][1] == "open"
    store, series = loaded.store, loaded.series("AAPL", "1d")
    identity = store.identity(series)
    rest = Interval(datetime(2026, 6, 12, tzinfo=UTC), datetime(2027, 1, 1, tzinfo=UTC))
    nothing = store.read(series).slice(0, 0)
    store.save(series, identity, nothing, Coverage(IntervalSet([rest])))
    tick(datetime(2027, 1, 4, tzinfo=UTC))
    rows, state = loaded.materialized("1d")["AAPL|2026"]
    assert (rows, state) == (
        store.rows(series, Interval(datetime(2026, 1, 1, tzinfo=UTC), rest.end)),
        "complete",
    )


def test_windows_of_a_renamed_symbol_are_reported_under_its_new_name(
    loaded: Any, tick: Callable[..., str]
) -> None:
    """No request is sent for them."""
    rename(loaded.layout, "AAPL", "APPLE", NOW)
    loaded.instance.add_dynamic_partitions("symbols_1d", ["APPLE"])
    loaded.instance.delete_dynamic_partition("symbols_1d", "AAPL")
    before = len(loaded.gateway.requests)
    tick()
    assert loaded.materialized("1d")["APPLE|2024"] == (252, "complete")
    assert len(loaded.gateway.requests) == before


def test_years_after_the_end_of_an_instrument_are_reported_as_such(
    loaded: Any, tick: Callable[..., str], remove: Callable[..., int]
) -> None:
    """From the end on nothing is expected."""
    days = loaded.store.rows_per_session(loaded.series("AAPL", "1d"))
    assert remove(loaded, "AAPL", "1d", [day for day in days if day.year > 2024])
    loaded.write_universe(
        "defaults: {timeframes: [1d], start: 2023-03-01}\nwindows: {yearly: 2022}\n"
        "symbols: {AAPL: {end: 2025-01-01}}"
    )
    tick()
    found = loaded.materialized("1d")
    assert found["AAPL|2022"] == (0, BEFORE)
    assert found["AAPL|2024"] == (252, "complete")
    assert found["AAPL|2026"] == (0, "after the end of the instrument")


def test_an_open_window_that_grew_through_the_command_line_is_reported(
    loaded: Any, tick: Callable[..., str]
) -> None:
    """By the record of a quiet run, which can be deleted when a later event replaces it."""
    tick()
    [before] = [one for name, one in loaded.materialized("1d").items() if name == "AAPL|2026"]
    later = datetime(2026, 6, 15, 12, tzinfo=UTC)
    add_session(loaded, date(2026, 6, 12))
    assert "reported 1 windows" in tick(later)
    rows, state = loaded.materialized("1d")["AAPL|2026"]
    assert (rows, state) == (before[0] + 1, "open")
    [run] = loaded.instance.get_runs(dg.RunsFilter(tags={KIND: "report"}))
    assert run.tags[QUIET] == "yes"
    assert "reported 0 windows" in tick(later)
    age = datetime.now(tz=UTC) + QUIET_KEPT + timedelta(minutes=1)
    assert prune_history(loaded.instance, age, most_runs=9, most_windows=9).runs == 0
    add_session(loaded, date(2026, 6, 15))
    assert "reported 1 windows" in tick(datetime(2026, 6, 16, 12, tzinfo=UTC))
    assert prune_history(loaded.instance, age, most_runs=9, most_windows=9).runs == 1
    assert loaded.materialized("1d")["AAPL|2026"] == (before[0] + 2, "open")


def add_session(location: Any, day: date) -> None:
    """Save a daily bar of AAPL for a session, as `ktrdr load` does."""
    store, series = location.store, location.series("AAPL", "1d")
    bars = store.read(series)
    start = datetime(day.year, day.month, day.day, tzinfo=UTC)
    added = bars.slice(bars.num_rows - 1)
    for name, value in (("ts", start), ("session_date", day)):
        at = added.schema.get_field_index(name)
        column = pa.array([value], added[name].type)
        added = added.set_column(at, added.schema.field(at), column)
    until = start + timedelta(days=1)
    store.save(
        series, store.identity(series), added, Coverage(IntervalSet([Interval(start, until)]))
    )
