"""The workspace: each part is made from settings and one store when it is first used."""

import subprocess
import sys
import threading
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import pytest

from ktrdr_pipelines.app.workspace import Workspace, gateway_config
from ktrdr_pipelines.domain.calendars.gateway_schedules import LearnedDay, ScheduleSource
from ktrdr_pipelines.domain.intervals import Interval
from ktrdr_pipelines.domain.universe.universe import Universe
from ktrdr_pipelines.errors import NoStoreError, UniverseError
from ktrdr_pipelines.settings import Settings
from ktrdr_pipelines.store.layout import create_store

NOW = datetime(2024, 6, 12, 12, tzinfo=UTC)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """Return the settings of a new store with one symbol."""
    layout = create_store(tmp_path / "data")
    layout.universe.write_text("symbols: {AAPL: {timeframes: [1d]}}\n")
    return Settings(ib_port=4999, ktrdr_data=layout.root, ktrdr_state=tmp_path / "state")


def test_opening_reads_the_marker_only(settings: Settings) -> None:
    """A malformed universe fails only what needs the universe, and no ledger is created."""
    workspace = Workspace.open(settings)
    workspace.layout.universe.write_text("symbols: [")
    _ = workspace.store, workspace.ledger, workspace.load_manager()
    assert not workspace.layout.ledger.exists()
    with pytest.raises(UniverseError):
        _ = workspace.universe
    workspace.layout.universe.write_text("symbols: {MSFT: {}}\n")
    assert list(workspace.universe.instruments) == ["MSFT"]
    assert workspace.problem is None


def test_a_folder_without_a_store_is_refused(tmp_path: Path) -> None:
    """Nothing is created in it."""
    with pytest.raises(NoStoreError):
        Workspace.open(Settings(ktrdr_data=tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_the_universe_stays_as_it_was_first_read(settings: Settings) -> None:
    """The next workspace sees an edit; an invalid one is its problem."""
    workspace = Workspace.open(settings)
    assert list(workspace.universe.instruments) == ["AAPL"]
    workspace.layout.universe.write_text("symbols: [")
    assert list(workspace.universe.instruments) == ["AAPL"]
    assert workspace.problem is None
    after = Workspace.open(settings)
    assert list(after.universe.instruments) == ["AAPL"]
    assert after.problem is not None
    stand_in = Workspace(settings, workspace.layout, universe=Universe({}))
    assert (stand_in.universe.instruments, stand_in.problem) == ({}, None)


def test_all_parts_are_of_one_store_and_gateway(settings: Settings) -> None:
    """Store, ledger, index and loads share the store, and the gateway of the settings."""
    moved = settings.model_copy(update={"ktrdr_clock_offset_s": 3600.0})
    workspace = Workspace(moved, Workspace.open(settings).layout, real=lambda: NOW)
    assert workspace.now == NOW + timedelta(hours=1)
    assert workspace.store.ledger is workspace.ledger
    assert workspace.gap_index().store is workspace.store
    manager = workspace.load_manager(wait_s=7.0)
    assert manager.layout == workspace.layout
    assert manager.gateway == workspace.gateway_config.gateway == "127.0.0.1:4999"
    policy = manager.retry_policy
    assert (policy.clock(), policy.wait_s, policy.clock_offset_s) == (NOW, 7.0, 3600.0)
    assert gateway_config(settings) == workspace.gateway_config


def test_each_gap_index_has_the_current_calendars(settings: Settings) -> None:
    """The next index of a workspace has the sessions that a load has learned."""
    workspace = Workspace.open(settings)
    workspace.layout.universe.write_text(
        "symbols: {VOD: {sec_type: STK, calendar: 'GATEWAY:America/New_York', timeframes: [1d]}}\n"
    )
    [series] = workspace.universe.series()
    before = workspace.gap_index()
    assert before.calendars.of(series.instrument).known is None
    open_from = datetime(2024, 6, 11, 7, tzinfo=UTC)
    stated = LearnedDay(date(2024, 6, 11), (Interval(open_from, open_from + timedelta(hours=8)),))
    key = f"{series.instrument.calendar} VOD"
    workspace.ledger.schedules.record(key, [stated], ScheduleSource.SCHEDULE, NOW)
    assert before.calendars.of(series.instrument).known is None
    assert workspace.gap_index().calendars.of(series.instrument).known is not None


def test_threads_share_a_workspace(settings: Settings) -> None:
    """Each uses a connection of its own to the ledger."""
    workspace = Workspace.open(settings)
    found, errors = [], []

    def look() -> None:
        try:
            found.append(workspace.gap_index().series_gaps(workspace.universe.series(), NOW))
        except BaseException as error:  # noqa: BLE001  (asserted below)
            errors.append(error)

    threads = [threading.Thread(target=look) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert len(found) == 6
    assert all(one == found[0] for one in found)


def test_the_catalog_is_rebuilt_from_the_store(settings: Settings) -> None:
    """It is due while there is none."""
    workspace = Workspace.open(settings)
    assert workspace.is_catalog_due()
    workspace.renew_catalog()
    assert workspace.layout.catalog.exists()


def test_a_workspace_imports_nothing_heavy() -> None:
    """Modules are imported when a part is first used."""
    code = (
        "import sys; from ktrdr_pipelines.app.workspace import Workspace;"
        "heavy = {'dagster', 'pandas', 'pyarrow', 'duckdb', 'ib_async', 'numpy',"
        "'exchange_calendars', 'sqlite3', 'matplotlib'};"
        "sys.exit(str(sorted(heavy & set(sys.modules))) if heavy & set(sys.modules) else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
