"""The gateway's resource: which fields hold, and which follow the file of settings."""

from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from ktrdr_pipelines.app.services.gateway_settings import update_gateway_settings
from ktrdr_pipelines.defs.resources import IbResource
from ktrdr_pipelines.defs.sensors.gap_sensor import gap_sensor
from ktrdr_pipelines.domain.timeframes import Timeframe
from ktrdr_pipelines.errors import SettingsError
from ktrdr_pipelines.settings import (
    PacingMode,
    Settings,
    effective_settings,
    load_settings,
    settings_file,
)
from ktrdr_pipelines.simulator.server import SimulatorServer, running_simulator
from ktrdr_pipelines.store.layout import StoreLayout, create_store

NOW = datetime(2026, 6, 12, 12, tzinfo=UTC)


@pytest.fixture
def layout(tmp_path: Path) -> StoreLayout:
    """Make an empty store."""
    return create_store(tmp_path / "data")


def of(layout: StoreLayout, environ: dict[str, str] | None = None) -> IbResource:
    """Return the resource of a code location that loads with these variables."""
    state = {"KTRDR_STATE": str(layout.root.parent / "state")}
    return IbResource.of(
        load_settings({"KTRDR_DATA": str(layout.root), **state, **(environ or {})})
    )


def test_fields_that_nothing_sets_follow_the_file(layout: StoreLayout) -> None:
    """What the environment sets holds; the rest is read at every use."""
    ib = of(layout, {"IB_HOST": "environment", "IB_CLIENT_ID_BATCH": "300-309"})
    assert ib.settings().ib_port == 4002
    update_gateway_settings(layout, host="file", port=4001, client_id=30, environ={})
    settings = ib.settings()
    assert (settings.ib_host, settings.ib_port) == ("environment", 4001)
    assert (settings.client_ids["api"], settings.client_ids["batch"]) == ((30, 30), (300, 309))
    assert of(layout).settings().client_ids["batch"] == (31, 50)
    settings_file(layout.root).unlink()
    assert ib.settings().ib_port == 4002


def test_a_field_of_the_launchpad_takes_precedence(layout: StoreLayout) -> None:
    """It counts as a flag."""
    update_gateway_settings(layout, host="file", port=4001, environ={})
    own = {
        "host": "launchpad",
        "port": 7,
        "pacing": "conservative",
        "client_ids": {"cli": "309-309"},
    }
    fields = of(layout, {"IB_CLIENT_ID_API": "1-2"}).model_dump() | own
    settings = IbResource(**fields).settings()
    assert (settings.ib_host, settings.ib_port) == ("launchpad", 7)
    assert settings.ib_pacing is PacingMode.CONSERVATIVE
    assert settings.client_ids["cli"] == (309, 309)


@pytest.mark.parametrize(
    "variables",
    [
        {},
        {"IB_CLIENT_ID": "105"},
        {"IB_TIMEOUT": "7", "IB_PACING": "conservative", "IB_MAX_RETRIES": "0"},
        {"IB_RETRY_DELAY": "0.5", "KTRDR_CLOCK_OFFSET_S": "-86400", "IB_CLIENT_ID_API": "2-3"},
    ],
)
def test_its_settings_are_those_it_was_made_of(
    layout: StoreLayout, variables: dict[str, str]
) -> None:
    """Whether the environment or the file says so."""
    update_gateway_settings(layout, port=4001, environ={})
    every = {"KTRDR_DATA": str(layout.root), "KTRDR_STATE": str(layout.root / "s"), **variables}
    assert IbResource.of(load_settings(every)).settings().model_dump() == (
        effective_settings(every).model_dump()
    )


def test_without_a_data_folder_no_file_is_read(tmp_path: Path) -> None:
    """Own definitions that name no folder get what they set, and defaults."""
    ib = IbResource(port=7, state_dir=str(tmp_path))
    assert ib.settings().model_dump() == Settings(ib_port=7, ktrdr_state=tmp_path).model_dump()


def test_a_bad_field_is_an_error_that_names_it(tmp_path: Path) -> None:
    """The Launchpad accepts any text."""
    with pytest.raises(SettingsError, match=r"IB_PACING='fast'.*adaptive or conservative"):
        IbResource(pacing="fast", state_dir=str(tmp_path)).settings()


@pytest.fixture
def other_gateway() -> Iterator[SimulatorServer]:
    """Run another gateway than the one of all tests."""
    with running_simulator(now=NOW) as server:
        yield server


def test_sensors_and_runs_use_a_change_without_a_restart(
    location: Any, other_gateway: SimulatorServer
) -> None:
    """The next tick reads the other gateway's state, and its runs connect there."""
    location.settings = Settings(
        ib_max_retries=0,
        ktrdr_data=location.layout.root,
        ktrdr_state=location.settings.ktrdr_state,
    )
    defs = location.defs()
    ib = defs.resources["ib"]
    sensor = gap_sensor(tuple(Timeframe), location.windows(), lambda: NOW)

    def tick() -> Any:
        context = dg.build_sensor_context(
            instance=location.instance, resources=defs.resources, definitions=defs
        )
        return sensor(context)

    def run(symbol: str) -> Any:
        return dg.materialize(
            list(defs.assets or []),
            selection=[dg.AssetKey(["bars", "1d"])],
            partition_key=f"{symbol}|2026",
            resources=defs.resources,
            instance=location.instance,
        )

    update_gateway_settings(location.layout, port=location.gateway.port, environ={})
    assert run("AAPL").success
    first = len(location.history())
    assert first
    with closing(ib.rate_limiter()) as budget:
        budget.note_absence(NOW - timedelta(minutes=1), "nothing listens")
    assert isinstance(tick(), dg.SkipReason)

    update_gateway_settings(location.layout, port=other_gateway.port, environ={})
    assert tick().run_requests
    assert run("MSFT").success
    assert len(location.history()) == first
    assert [one for one in other_gateway.requests if one.kind == "history"]

    settings_file(location.layout.root).write_text('{"ib_port": "paper"}')
    skipped = tick()
    assert "settings.json, ib_port='paper'" in str(skipped.skip_message)
