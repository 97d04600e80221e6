"""Windows that lose bars are marked as failed once, and materialized again when filled."""

from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from itertools import count
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from dagster._core.storage.partition_status_cache import AssetPartitionStatus

from ktrdr_pipelines.defs.partitions import BarPartition, bars_partitions
from ktrdr_pipelines.defs.runs.outcome import materialization
from ktrdr_pipelines.defs.runs.tags import CAUSE, KIND
from ktrdr_pipelines.defs.sensors.alert_sensor import alert_sensor
from ktrdr_pipelines.defs.sensors.gap_sensor import past_runs
from ktrdr_pipelines.defs.sensors.lost_windows import ShownHistory
from ktrdr_pipelines.defs.sensors.materialization_sensor import report_sensor
from ktrdr_pipelines.defs.sensors.run_history_sensor import (
    FAILED_KEPT,
    QUIET_KEPT,
    prune_history,
)
from ktrdr_pipelines.domain.intervals import Interval, IntervalSet
from ktrdr_pipelines.domain.timeframes import Timeframe
from ktrdr_pipelines.gaps.windows import WindowState, WindowStatus

NOW = datetime(2026, 6, 12, 12, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
KEY = dg.AssetKey(["bars", "1d"])
YEARS = ("2023", "2024", "2025", "2026")
Remove = Callable[..., int]


class Watched:
    """A loaded location whose daily windows of AAPL are materialized, and its report sensor."""

    def __init__(self, location: Any) -> None:
        self.location = location
        location.write_universe(
            "defaults: {timeframes: [1d], start: 2023-03-01}\n"
            "windows: {yearly: 2020}\nsymbols: {AAPL: {}}"
        )
        assert location.run("1d", "AAPL|2023", "AAPL|2026").success
        self._cursor: str | None = None
        self.tick(NOW)

    @property
    def instance(self) -> dg.DagsterInstance:
        return self.location.instance  # type: ignore[no-any-return]

    def tick(self, now: datetime, *, in_time: bool = True) -> str:
        """Tick the report sensor, whose time may be over at once, and return its message."""
        moments = iter(0.0 if in_time else 1000.0 * number for number in count())
        context = dg.build_sensor_context(
            instance=self.instance, resources=self.location.defs().resources, cursor=self._cursor
        )
        sensor = report_sensor(self.location.windows(), lambda: now, lambda: next(moments))
        result: Any = sensor(context)
        self._cursor = result.cursor
        return str(result.skip_reason.skip_message)

    def failed(self) -> set[str]:
        """Return the years that the UI shows as failed; all others are materialized."""
        keys = [f"AAPL|{year}" for year in YEARS]
        partitions = bars_partitions(Timeframe.D1, self.location.windows())
        shown = self.instance.get_status_by_partition(KEY, keys, partitions) or {}
        names = {key: status.value if status else "" for key, status in shown.items()}
        assert set(names.values()) <= {"MATERIALIZED", "FAILED"}
        return {key.split("|")[1] for key, name in names.items() if name == "FAILED"}

    def records(self) -> list[dg.RunRecord]:
        """Return the records of lost windows."""
        return list(self.instance.get_run_records(dg.RunsFilter(tags={KIND: "lost"})))


@pytest.fixture
def watched(loaded: Any) -> Watched:
    """Return the location with its report sensor."""
    return Watched(loaded)


def bar_file(watched: Watched) -> Path:
    """Return the file of the daily bars."""
    [path] = watched.location.layout.bar_files("AAPL", Timeframe.D1)
    return Path(path)


def lose_session(watched: Watched, remove: Remove) -> None:
    """Remove a session of a year that has ended."""
    assert remove(watched.location, "AAPL", "1d", [date(2024, 7, 5)])


def lose_recent_session(watched: Watched, remove: Remove) -> None:
    """Remove a session of the open year that it had when it was reported."""
    assert remove(watched.location, "AAPL", "1d", [date(2026, 5, 5)])


def lose_file(watched: Watched, _: Remove) -> None:
    """Delete the file."""
    bar_file(watched).unlink()


def damage_file(watched: Watched, _: Remove) -> None:
    """Overwrite the file."""
    bar_file(watched).write_bytes(b"no file of bars")


@pytest.mark.parametrize(
    ("lose", "expected"),
    [
        (lose_session, {"2024"}),
        (lose_recent_session, {"2026"}),
        (lose_file, set(YEARS)),
        (damage_file, set(YEARS)),
    ],
)
def test_windows_that_lost_bars_are_shown_as_failed_until_they_are_filled(
    watched: Watched,
    remove: Remove,
    lose: Callable[[Watched, Remove], None],
    expected: set[str],
) -> None:
    """Not before a gap run had time to fill them, once, and by one record for all."""
    whole = bar_file(watched).read_bytes()
    assert watched.failed() == set()
    lose(watched, remove)
    assert "and are marked unless they are filled" in watched.tick(NOW + MINUTE)
    assert watched.failed() == set()
    assert f"marked {len(expected)} windows as failed" in watched.tick(NOW + 5 * MINUTE)
    assert watched.failed() == expected
    assert "marked" not in watched.tick(NOW + 6 * MINUTE)
    assert "marked" not in watched.tick(NOW + 16 * MINUTE)
    assert len(watched.records()) == 1
    bar_file_path = watched.location.layout.series_folder("AAPL", Timeframe.D1) / "all.parquet"
    bar_file_path.write_bytes(whole)
    text = watched.tick(NOW + 17 * MINUTE)
    assert f"materialized {len(expected)} windows that are filled again" in text
    assert watched.failed() == set()
    assert "filled again" not in watched.tick(NOW + 18 * MINUTE)


def test_every_series_is_compared_even_if_each_tick_has_time_for_one(
    watched: Watched, remove: Remove
) -> None:
    """The series of MSFT is marked although those before it take all the time of a tick."""
    watched.location.write_universe(
        "defaults: {timeframes: [1d], start: 2023-03-01}\n"
        "windows: {yearly: 2020}\nsymbols: {AAPL: {}, MSFT: {}}"
    )
    assert watched.location.run("1d", "MSFT|2023", "MSFT|2026").success
    for symbol in ("AAPL", "MSFT"):
        assert remove(watched.location, symbol, "1d", [date(2024, 7, 5)])
    texts = [watched.tick(NOW + minute * MINUTE, in_time=False) for minute in range(1, 9)]
    assert sum("marked 1 windows as failed" in text for text in texts) == 2
    assert watched.failed() == {"2024"}
    assert len(watched.records()) == 2


def test_a_window_that_was_filled_in_time_has_its_grace_again(
    watched: Watched, remove: Remove
) -> None:
    """Although no tick has had the time to compare all series."""
    watched.location.write_universe(
        "defaults: {timeframes: [1d], start: 2023-03-01}\n"
        "windows: {yearly: 2020}\nsymbols: {AAPL: {}, MSFT: {}}"
    )
    whole = bar_file(watched).read_bytes()
    lose_session(watched, remove)
    for minute in (1, 2):
        watched.tick(NOW + minute * MINUTE, in_time=False)
    (watched.location.layout.series_folder("AAPL", Timeframe.D1) / "all.parquet").write_bytes(whole)
    for minute in (3, 4):
        watched.tick(NOW + minute * MINUTE, in_time=False)
    lose_session(watched, remove)
    for minute in (10, 11):
        assert "as failed" not in watched.tick(NOW + minute * MINUTE, in_time=False)
    assert watched.failed() == set()


def test_a_run_that_fills_a_lost_window_materializes_it(watched: Watched, remove: Remove) -> None:
    """What "only failed and missing" launches; afterwards the record can be deleted."""
    lose_session(watched, remove)
    watched.tick(NOW + MINUTE)
    watched.tick(NOW + 5 * MINUTE)
    assert watched.failed() == {"2024"}
    [record] = watched.records()
    assert pruned(watched, FAILED_KEPT + QUIET_KEPT) == 0
    assert watched.location.run("1d", "AAPL|2024", "AAPL|2024").success
    assert watched.failed() == set()
    assert pruned(watched, QUIET_KEPT) == 1
    assert watched.instance.get_run_by_id(record.dagster_run.run_id) is None
    assert watched.failed() == set()


def test_old_records_of_lost_windows_are_joined(watched: Watched, remove: Remove) -> None:
    """Their windows are still shown as failed, also when Dagster computes that anew."""
    for minutes, day in ((0, date(2024, 7, 5)), (20, date(2025, 7, 7))):
        assert remove(watched.location, "AAPL", "1d", [day])
        watched.tick(NOW + (minutes + 1) * MINUTE)
        watched.tick(NOW + (minutes + 5) * MINUTE)
    before = {one.dagster_run.run_id for one in watched.records()}
    assert len(before) == 2
    assert pruned(watched, FAILED_KEPT) == 2
    [joined] = watched.records()
    assert joined.dagster_run.run_id not in before
    watched.instance.wipe_asset_cached_status([KEY])
    assert watched.failed() == {"2024", "2025"}


def test_a_record_is_no_failure_of_a_job(watched: Watched, remove: Remove) -> None:
    """It is not alerted, not retried, and no run of the gap sensor; its text names the windows."""
    lose_session(watched, remove)
    watched.tick(NOW + MINUTE)
    watched.tick(NOW + 5 * MINUTE)
    [record] = watched.records()
    run = record.dagster_run
    assert run.status is dg.DagsterRunStatus.FAILURE
    assert CAUSE not in run.tags
    assert run.tags["dagster/max_retries"] == "0"
    assert past_runs(watched.instance) == {}
    context = dg.build_sensor_context(
        instance=watched.instance, resources=watched.location.defs().resources
    )
    result: Any = alert_sensor(None)(context)
    assert result.skip_reason.skip_message == "nothing is failing"
    [event] = [
        one
        for one in watched.instance.all_logs(run.run_id)
        if one.dagster_event and one.dagster_event.is_failure
    ]
    assert "AAPL 2024: missing [2024-07-05" in event.message


def test_bars_that_an_open_window_has_not_received_yet_are_not_lost(
    watched: Watched, remove: Remove
) -> None:
    """A gateway that is away after the window was reported loses nothing."""
    window = Interval(datetime(2026, 1, 1, tzinfo=UTC), datetime(2027, 1, 1, tzinfo=UTC))
    status = WindowStatus(window, WindowState.OPEN, 100, IntervalSet())
    partition, before = BarPartition("AAPL", "2026"), datetime(2026, 6, 11, 15, tzinfo=UTC)
    event = materialization(Timeframe.D1, partition, status, now=before)
    watched.instance.report_runless_asset_event(event)
    assert remove(watched.location, "AAPL", "1d", [date(2026, 6, 11)])
    for minutes in (1, 10, 100):
        assert "marked" not in watched.tick(NOW + minutes * MINUTE)
    assert watched.failed() == set()


def pruned(watched: Watched, age: timedelta) -> int:
    """Prune as if all runs had an age; return the number of deleted runs."""
    now = datetime.now(tz=UTC) + age + MINUTE
    return prune_history(watched.instance, now, most_runs=100, most_windows=100).runs


def test_what_is_shown_is_read_again_once_an_event_or_a_run_was_added(location: Any) -> None:
    """A process keeps what it read only as long as Dagster's history stays as it is."""
    instance, history = location.instance, ShownHistory()
    series = [location.series("AAPL", "1d")]
    names = {Timeframe.D1: ["2024", "2025"]}

    def shown() -> Any:
        return history.shown(instance, series, names, location.windows())[Timeframe.D1]

    def report(window: str) -> None:
        key = dg.AssetKey(["bars", "1d"])
        instance.report_runless_asset_event(dg.AssetMaterialization(key, partition=window))

    report("AAPL|2024")
    before, known = shown(), history.materialized(instance, Timeframe.D1)
    assert before["AAPL"] == {"2024": AssetPartitionStatus.MATERIALIZED}
    assert shown() is before
    assert history.materialized(instance, Timeframe.D1) is known == {"AAPL|2024"}
    report("AAPL|2025")
    assert set(shown()["AAPL"]) == {"2024", "2025"}
    assert history.materialized(instance, Timeframe.D1) == {"AAPL|2024", "AAPL|2025"}
    before = shown()
    run = instance.add_run(dg.DagsterRun("any"))
    assert shown() is not before
    before = shown()
    instance.delete_run(run.run_id)
    assert shown() is not before
