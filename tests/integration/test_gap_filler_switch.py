"""The gap filler's switch and its forced scan, against a running Dagster."""

from collections.abc import Callable, Mapping
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from ktrdr_pipelines.app.services.gap_filler import GapFillerService
from ktrdr_pipelines.app.setup import dagster_home
from ktrdr_pipelines.app.workspace import Workspace
from ktrdr_pipelines.domain.intervals import Interval
from ktrdr_pipelines.settings import load_settings
from ktrdr_pipelines.simulator.server import running_simulator
from ktrdr_pipelines.store.layout import create_store

NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)
UNIVERSE = """
defaults: {timeframes: [1d], start: 2025-12-01}
windows: {yearly: 2022}
symbols: {AAPL: {}}
"""


@pytest.mark.slow
def test_a_running_daemon_is_switched_and_woken(
    tmp_path: Path,
    dagster_dev: Callable[[Mapping[str, str]], Any],
    wait_for: Callable[..., Any],
) -> None:
    """The sensor stops, goes on, and scans well before its interval when it is forced to."""
    layout = create_store(tmp_path / "data")
    layout.universe.write_text(UNIVERSE, encoding="utf-8")
    dagster_home(layout).symlink_to(tmp_path / "dagster" / "home")
    with running_simulator(now=NOW) as gateway:
        offset_s = (NOW - datetime.now(tz=UTC)).total_seconds()
        environment = {
            "IB_PORT": str(gateway.port),
            "KTRDR_DATA": str(layout.root),
            "KTRDR_STATE": str(tmp_path / "state"),
            "KTRDR_CLOCK_OFFSET_S": repr(offset_s),
        }
        settings = load_settings(environment)
        service = GapFillerService(lambda: Workspace.open(settings))
        with dagster_dev(environment), closing(service):

            def scanned_at() -> datetime | None:
                return service.status().last_scan

            wait_for(lambda: service.status().running, "the sensor to run")
            wait_for(lambda: service.status().gaps_filled, "the gap to be filled")
            assert service.status().symbols == ("AAPL",)
            assert not service.stop().enabled
            start = datetime(2025, 12, 1, tzinfo=UTC)
            Workspace.open(settings).ledger.attempts.record(
                "AAPL|1d",
                Interval(start, start + timedelta(days=1)),
                "error",
                error="timeout",
                code=None,
                next_try_at=datetime.now(tz=UTC) + timedelta(days=1),
                at=datetime.now(tz=UTC),
            )
            assert service.start().running
            before = scanned_at()
            wait_for(lambda: scanned_at() != before, "a scan after the switch", seconds=60)
            regular = scanned_at()
            assert regular is not None
            forced = service.force_scan()
            assert (forced.sensor_woken, forced.gaps_made_due) == (True, 1)
            wait_for(lambda: scanned_at() != regular, "the forced scan", seconds=60)
            woken = scanned_at()
            assert woken is not None
            assert woken - regular < timedelta(seconds=25)  # every 30 s without being woken
