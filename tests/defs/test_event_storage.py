"""The event log: batches are one commit, and say the same as single events."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from dagster._core.events import (
    AssetMaterializationPlannedData,
    DagsterEvent,
    StepMaterializationData,
)
from dagster._core.events.log import EventLogEntry
from dagster._core.storage.event_log import SqliteEventLogStorage
from sqlalchemy import Engine, event

from ktrdr_pipelines.defs.event_storage import BatchEventLogStorage
from tests.support.counted_events import CountedEvents, counted_instance

KEY = dg.AssetKey(["bars", "1d"])


@pytest.fixture(autouse=True)
def batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let Dagster send batches in this test alone."""
    monkeypatch.setenv("DAGSTER_EVENT_BATCH_SIZE", "1000")


@pytest.fixture
def commits() -> Iterator[list[str]]:
    """Yield a list that gets an entry for each commit after an insert."""
    found: list[str] = []
    written: set[int] = set()

    def note(connection: Any, cursor: Any, statement: str, *_: Any) -> None:
        if statement.startswith("INSERT INTO event_logs"):
            written.add(id(connection))

    def count(connection: Any) -> None:
        if id(connection) in written:
            written.discard(id(connection))
            found.append(str(connection.engine.url))

    event.listen(Engine, "before_cursor_execute", note)
    event.listen(Engine, "commit", count)
    yield found
    event.remove(Engine, "before_cursor_execute", note)
    event.remove(Engine, "commit", count)


def entries(years: range) -> list[EventLogEntry]:
    """Return the events of a run that was going to materialize windows, and did."""
    planned = [
        DagsterEvent.build_asset_materialization_planned_event(
            "job", "step", AssetMaterializationPlannedData(KEY, partition=f"AAPL|{year}")
        )
        for year in years
    ]
    done = [
        DagsterEvent(
            event_type_value=dg.DagsterEventType.ASSET_MATERIALIZATION.value,
            job_name="job",
            event_specific_data=StepMaterializationData(
                dg.AssetMaterialization(KEY, partition=f"AAPL|{year}", tags={"of": str(year)})
            ),
        )
        for year in years
    ]
    return [
        EventLogEntry(
            error_info=None,
            level=20,
            user_message="",
            run_id="5d1c3a52-2f43-4f0c-9d6d-0f8f6a1f7e10",
            timestamp=1_700_000_000.0 + number,
            job_name="job",
            dagster_event=one,
        )
        for number, one in enumerate([*planned, *done])
    ]


def test_a_batch_is_one_commit_a_file(tmp_path: Path, commits: list[str]) -> None:
    """The log of the run has one, and the index of all runs another."""
    storage = BatchEventLogStorage(str(tmp_path))
    storage.store_event_batch(entries(range(2000, 2025)))
    assert len(commits) == len(set(commits)) == 2


def test_a_batch_says_what_single_events_say(tmp_path: Path) -> None:
    """Dagster's own storage reads the same from the files of both."""
    every = entries(range(2020, 2025))
    batched = BatchEventLogStorage(str(tmp_path / "batch"))
    single = SqliteEventLogStorage(str(tmp_path / "single"))
    batched.store_event_batch(every)
    for one in every:
        single.store_event(one)
    read = SqliteEventLogStorage(str(tmp_path / "batch"))
    for storage in (read, single):
        assert len(storage.get_materialized_partitions(KEY)) == 5
    for ask in (
        lambda one: one.get_logs_for_run(every[0].run_id),
        lambda one: one.get_asset_records([KEY])[0].asset_entry,
        lambda one: one.get_event_tags_for_asset(KEY),
        lambda one: one.get_latest_storage_id_by_partition(
            KEY, dg.DagsterEventType.ASSET_MATERIALIZATION
        ),
        lambda one: one.get_latest_storage_id_by_partition(
            KEY, dg.DagsterEventType.ASSET_MATERIALIZATION_PLANNED
        ),
    ):
        assert ask(read) == ask(single)


def test_a_run_reports_its_complete_windows_in_one_batch(loaded: Any, tmp_path: Path) -> None:
    """What is planned is one batch, what is materialized another; no window has a commit alone."""
    with counted_instance(tmp_path / "home") as instance:
        instance.add_dynamic_partitions("symbols_1d", ["AAPL", "MSFT"])
        result = replace(loaded, instance=instance).run("1d", "AAPL|2024", "MSFT|2025")
    assert result.success
    assert CountedEvents.batches == [
        ("ASSET_MATERIALIZATION_PLANNED", 4),
        ("ASSET_MATERIALIZATION", 4),
    ]
    assert CountedEvents.singles["ASSET_MATERIALIZATION"] == 0
    assert CountedEvents.singles["LOG"] <= 2, "lines about series are not entries of their own"
