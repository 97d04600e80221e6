"""Windows that are complete and that Dagster does not know are told of; nothing else is."""

from collections.abc import Callable
from datetime import UTC, date, datetime
from itertools import count
from typing import Any

import dagster as dg
import pytest

from ktrdr_pipelines.defs.sensors.materialization_sensor import report_sensor
from ktrdr_pipelines.store.maintenance.rename import rename

NOW = datetime(2026, 6, 12, 12, tzinfo=UTC)
KEY = dg.AssetKey(["bars", "1d"])
BEFORE = "before the start that the universe gives"


@pytest.fixture
def tick(location: Any) -> Callable[..., str]:
    """Give the way to tick the sensor and have what it said."""
    cursor: list[str] = []

    def run(now: datetime = NOW, tells: int = 1000) -> str:
        moments = iter(float(second > tells) * 1000 for second in count())
        defs = location.defs()
        context = dg.build_sensor_context(
            instance=location.instance,
            resources=defs.resources,
            cursor=cursor[-1] if cursor else None,
        )
        sensor = report_sensor(location.windows(), lambda: now, lambda: next(moments))
        result: Any = sensor(context)
        cursor.append(result.cursor)
        return str(result.skip_reason.skip_message)

    return run


def told(location: Any) -> dict[str, tuple[int, str]]:
    """Give rows and state of each window of days, as Dagster was told last."""
    found: dict[str, tuple[int, str]] = {}
    for record in location.instance.fetch_materializations(KEY, limit=1000).records:
        metadata = record.asset_materialization.metadata
        value = (metadata["dagster/partition_row_count"].value, metadata["state"].value)
        found.setdefault(str(record.partition_key), value)
    return found


def test_windows_that_came_by_other_ways_are_told_of(
    location: Any, tick: Callable[..., str]
) -> None:
    """A store that Dagster knows nothing of: complete and explained windows, with their rows."""
    assert location.run("1d", "AAPL|2023", "AAPL|2025").success
    by_run = {key: value for key, value in told(location).items() if "AAPL" in key}
    location.instance.wipe_assets([KEY])
    text = tick()
    assert "examined 4 of 4 series" in text
    explained = {
        f"{symbol}|{year}": (0, BEFORE)
        for symbol in ("AAPL", "MSFT")
        for year in (2020, 2021, 2022)
    }
    assert told(location) == by_run | explained
    assert by_run["AAPL|2024"] == (252, "complete")
    assert "reported 0 windows" in tick()


def test_tick_that_takes_too_long_is_gone_on_with(location: Any, tick: Callable[..., str]) -> None:
    """What a tick has no time for is told of by those after it, and nothing twice."""
    assert location.run("1d", "AAPL|2023", "AAPL|2025").success

    def told_of(text: str) -> int:
        return int(text.split("reported ")[1].split(maxsplit=1)[0])

    def forget() -> None:
        location.instance.wipe_assets([KEY, dg.AssetKey(["bars", "1h"])])

    forget()
    whole = told_of(tick())
    forget()
    parts = [told_of(tick(tells=4)) for _ in range(10)]
    assert 0 < max(parts) < 4
    assert sum(parts) == whole > 10
    assert told_of(tick()) == 0


def test_window_with_a_hole_is_never_told_of(
    location: Any, tick: Callable[..., str], forget: Callable[..., int]
) -> None:
    """One missing session in a year: that year is not materialized, its neighbours are."""
    assert location.run("1d", "AAPL|2023", "AAPL|2025").success
    location.instance.wipe_assets([KEY])
    assert forget(location, "AAPL", "1d", [date(2024, 7, 5)]) == 1
    tick()
    assert "AAPL|2024" not in told(location)
    assert {"AAPL|2023", "AAPL|2025"} <= set(told(location))
    assert "AAPL|2026" not in told(location)


def test_window_that_was_told_of_while_open_is_told_of_when_it_closes(
    location: Any, tick: Callable[..., str]
) -> None:
    """The year has ended and its bars are all there: Dagster learns the final rows."""
    assert location.run("1d", "AAPL|2023", "AAPL|2026").success
    assert told(location)["AAPL|2026"][1] == "open"
    location.layout.universe.write_text(
        "defaults: {timeframes: [1d], start: 2026-06-01}\nwindows: {yearly: 2026}\n"
        "symbols: {AAPL: {}}"
    )
    tick()
    assert told(location)["AAPL|2026"][1] == "open"
    store, series = location.store, location.series("AAPL", "1d")
    identity = store.identity(series)
    from ktrdr_pipelines.domain.coverage import Coverage  # noqa: PLC0415
    from ktrdr_pipelines.domain.intervals import Interval, IntervalSet  # noqa: PLC0415

    rest = Interval(datetime(2026, 6, 12, tzinfo=UTC), datetime(2027, 1, 1, tzinfo=UTC))
    nothing = store.read(series).slice(0, 0)
    store.save(series, identity, nothing, Coverage(IntervalSet([rest])))
    tick(datetime(2027, 1, 4, tzinfo=UTC))
    rows, state = told(location)["AAPL|2026"]
    assert (rows, state) == (
        store.rows(series, Interval(datetime(2026, 1, 1, tzinfo=UTC), rest.end)),
        "complete",
    )


def test_renamed_symbol_is_told_of_under_its_new_name(
    location: Any, tick: Callable[..., str]
) -> None:
    """The windows of the old name are the new one's, without a run."""
    assert location.run("1d", "AAPL|2024", "AAPL|2025").success
    rename(location.layout, "AAPL", "APPLE", NOW)
    location.instance.add_dynamic_partitions("symbols_1d", ["APPLE"])
    location.instance.delete_dynamic_partition("symbols_1d", "AAPL")
    before = len(location.gateway.requests)
    tick()
    assert told(location)["APPLE|2024"] == (252, "complete")
    assert len(location.gateway.requests) == before


def test_years_after_the_end_of_an_instrument_are_told_of_as_such(
    location: Any, tick: Callable[..., str]
) -> None:
    """It was delisted: nothing is expected from then on, and nothing is asked for."""
    assert location.run("1d", "AAPL|2023", "AAPL|2025").success
    location.layout.universe.write_text(
        "defaults: {timeframes: [1d], start: 2023-03-01}\nwindows: {yearly: 2022}\n"
        "symbols: {AAPL: {end: 2025-01-01}}"
    )
    location.instance.wipe_assets([KEY])
    tick()
    found = {key: value for key, value in told(location).items() if key.startswith("AAPL")}
    assert found["AAPL|2022"] == (0, BEFORE)
    assert found["AAPL|2024"] == (252, "complete")
    assert found["AAPL|2026"] == (0, "after the end of the instrument")
