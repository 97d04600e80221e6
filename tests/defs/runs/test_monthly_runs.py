"""Unfinished backfills and runs over months of 1m are replaced by backfills over years."""

from datetime import UTC, datetime
from typing import Any

import dagster as dg
import pytest
from dagster._core.execution.backfill import BulkActionStatus

from ktrdr_pipelines.defs.runs.monthly_runs import REPLACED_BY, REPLACES, replace_monthly_runs
from ktrdr_pipelines.defs.runs.tags import BACKFILL, KIND, RANGE_END, RANGE_START
from tests.support.monthly_backfills import MINUTES, monthly_backfill

NOW = datetime(2026, 6, 12, 12, tzinfo=UTC)


@pytest.fixture
def instance(location: Any) -> dg.DagsterInstance:
    """Return the Dagster instance of the location, with symbols of 1m."""
    found: dg.DagsterInstance = location.instance
    found.add_dynamic_partitions("symbols_1m", ["AAPL", "MSFT"])
    return found


def targets(backfill: Any) -> set[str]:
    """Return the partitions of 1m that a backfill is to load."""
    subset = backfill.asset_backfill_data.target_subset
    return set(subset.get_partitions_subset(MINUTES).get_partition_keys())


@pytest.mark.parametrize("status", [BulkActionStatus.REQUESTED, BulkActionStatus.FAILING])
def test_a_backfill_continues_over_the_years_of_its_remaining_months(
    instance: dg.DagsterInstance, status: BulkActionStatus
) -> None:
    """With its tags; months that are loaded and symbols that have gone are left out."""
    months = [f"{symbol}|{year}-11" for symbol in ("AAPL", "MSFT", "GONE") for year in (2024, 2025)]
    old = monthly_backfill("old", months, done=["AAPL|2024-11"], tags={"team": "research"})
    instance.add_backfill(old.with_status(status))
    [replaced] = replace_monthly_runs(instance, NOW)
    assert "canceled backfill old: it is over months of 1m, whose windows are years" in (
        str(replaced)
    )
    canceled = instance.get_backfill("old")
    assert canceled is not None
    assert canceled.status is BulkActionStatus.CANCELED
    assert canceled.tags[REPLACED_BY] == replaced.replacement
    assert canceled.error is not None
    assert canceled.error.message == str(replaced)
    new = instance.get_backfill(str(replaced.replacement))
    assert new is not None
    assert new.status is BulkActionStatus.REQUESTED
    assert new.tags == {"team": "research", REPLACES: "old"}
    assert targets(new) == {"AAPL|2025", "MSFT|2024", "MSFT|2025"}
    assert replace_monthly_runs(instance, NOW) == []


def test_a_replacement_that_was_killed_half_way_is_not_launched_twice(
    instance: dg.DagsterInstance,
) -> None:
    """The backfill of the years exists, the one of the months is still open."""
    old = monthly_backfill("old", ["AAPL|2025-11"])
    instance.add_backfill(old)
    replace_monthly_runs(instance, NOW)
    instance.update_backfill(old)
    assert len(replace_monthly_runs(instance, NOW)) == 1
    assert len(instance.get_backfills()) == 2


def test_backfills_over_years_stay(instance: dg.DagsterInstance) -> None:
    """They are not touched."""
    instance.add_backfill(monthly_backfill("new", ["AAPL|2025"]))
    assert replace_monthly_runs(instance, NOW) == []
    kept = instance.get_backfill("new")
    assert kept is not None
    assert kept.status is BulkActionStatus.REQUESTED


@pytest.mark.parametrize(
    ("tags", "years"),
    [
        ({}, {"AAPL|2024", "AAPL|2025", "MSFT|2024", "MSFT|2025"}),
        ({BACKFILL: "old"}, None),
        ({KIND: "gap"}, None),
    ],
)
def test_waiting_runs_over_months_are_canceled(
    instance: dg.DagsterInstance, tags: dict[str, str], years: set[str] | None
) -> None:
    """Only what a user launched by itself is replaced: sensor and backfill launch anew."""
    run = instance.add_run(
        dg.DagsterRun(
            job_name="__ASSET_JOB",
            run_id="5f0c2d1e-6a4e-4d7e-9f57-2f0d3c1b8a90",
            tags={RANGE_START: "AAPL|2024-11", RANGE_END: "MSFT|2025-02", **tags},
            asset_selection=frozenset({MINUTES}),
            status=dg.DagsterRunStatus.STARTED,
        )
    )
    assert replace_monthly_runs(instance, NOW) == []
    [replaced] = replace_monthly_runs(instance, NOW, is_dagster_down=True)
    [ended] = instance.get_runs(dg.RunsFilter(run_ids=[run.run_id]))
    assert ended.status is dg.DagsterRunStatus.CANCELED
    new = instance.get_backfills()
    assert [targets(one) for one in new] == ([years] if years else [])
    assert [one.tags for one in new] == ([{REPLACES: run.run_id}] if years else [])
    assert [one.backfill_id for one in new] == ([replaced.replacement] if years else [])
