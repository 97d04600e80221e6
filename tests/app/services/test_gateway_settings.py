"""Settings of the gateway that are changed while everything runs."""

import json
import multiprocessing
from pathlib import Path
from typing import Any

import pytest

from ktrdr_pipelines.app.services.gateway_settings import update_gateway_settings
from ktrdr_pipelines.app.workspace import Workspace, gateway_config
from ktrdr_pipelines.errors import (
    SettingFixedError,
    SettingsError,
    SettingValueError,
    StoreReplacedError,
)
from ktrdr_pipelines.settings import Source, effective_settings, settings_file, settings_sources
from ktrdr_pipelines.store.layout import StoreLayout, create_store


@pytest.fixture
def layout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StoreLayout:
    """Make a store that the environment names, without any other variable."""
    for name in ("IB_HOST", "IB_PORT", "IB_CLIENT_ID", "IB_CLIENT_ID_API"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("KTRDR_DATA", str(tmp_path / "data"))
    return create_store(tmp_path / "data")


def content(layout: StoreLayout) -> Any:
    """Return what the file has."""
    return json.loads(settings_file(layout.root).read_text())


def test_a_change_is_used_by_all_that_opens_a_connection_later(layout: StoreLayout) -> None:
    """The file has what was changed alone, and later changes leave the rest."""
    before, after = update_gateway_settings(layout, port=4001)
    assert (before.ib_port, after.ib_port) == (4002, 4001)
    assert settings_sources(after)["ib_port"] is Source.FILE
    assert Workspace.open().gateway_config.gateway == gateway_config().gateway == "127.0.0.1:4001"
    _, after = update_gateway_settings(layout, host="gateway.local", client_id=3)
    assert content(layout) == {
        "ib_host": "gateway.local",
        "ib_port": 4001,
        "ib_client_id_api": "3-10",
    }
    assert after == effective_settings(flags={"ktrdr_data": layout.root})
    assert update_gateway_settings(layout) == (after, after)


def test_an_edit_by_hand_stays(layout: StoreLayout) -> None:
    """Also a range of client ids that begins with the id that is wanted."""
    text = '{"ib_timeout": 7.5, "ib_pacing": "conservative", "ib_client_id_api": "3-5"}'
    settings_file(layout.root).write_text(text)
    _, after = update_gateway_settings(layout, client_id=3, port=1)
    assert content(layout) == {**json.loads(text), "ib_port": 1}
    assert after.client_ids["api"] == (3, 5)


@pytest.mark.parametrize(
    ("variables", "change", "variable"),
    [
        ({"IB_PORT": "4001"}, {"port": 4002}, "IB_PORT"),
        ({"IB_HOST": "one"}, {"host": "two", "port": 7}, "IB_HOST"),
        ({"IB_CLIENT_ID_API": "2-4"}, {"client_id": 3}, "IB_CLIENT_ID_API"),
        ({"IB_CLIENT_ID": "4"}, {"client_id": 3}, "IB_CLIENT_ID"),
    ],
)
def test_a_value_that_the_environment_fixes_cannot_change(
    layout: StoreLayout, variables: dict[str, str], change: dict[str, Any], variable: str
) -> None:
    """The error names the variable, and nothing is written; the same value is no change."""
    with pytest.raises(SettingFixedError, match=rf"{variable} in the environment") as caught:
        update_gateway_settings(layout, **change, environ=variables)
    assert caught.value.variable == variable
    assert not settings_file(layout.root).exists()
    before, after = update_gateway_settings(layout, port=4001, environ={"IB_PORT": "4001"})
    assert before == after
    assert not settings_file(layout.root).exists()


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"port": 0}, "port=0: "),
        ({"port": 70000}, "port=70000: "),
        ({"host": ""}, "host='': "),
        ({"host": "http://gateway"}, "host='http://gateway': "),
        ({"client_id": 0}, "client_id=0: "),
        ({"client_id": 2**31}, "client_id=2147483648: "),
    ],
)
def test_a_bad_value_is_named(layout: StoreLayout, change: dict[str, Any], named: str) -> None:
    """Nothing is written, of the other values either."""
    with pytest.raises(SettingsError) as caught:
        update_gateway_settings(layout, **{"port": 1, "host": "one", **change})
    assert named in str(caught.value)
    assert not settings_file(layout.root).exists()


def test_an_id_of_a_range_that_a_variable_sets_is_refused(layout: StoreLayout) -> None:
    """The file would otherwise be an error of all that reads it."""
    variables = {"IB_CLIENT_ID_BATCH": "11-50"}
    with pytest.raises(SettingValueError, match=r"client_id=20: .*overlap") as caught:
        update_gateway_settings(layout, client_id=20, environ=variables)
    assert caught.value.field == "client_id"
    assert not settings_file(layout.root).exists()
    _, after = update_gateway_settings(layout, client_id=20, environ={})
    assert (after.client_ids["api"], after.client_ids["batch"]) == ((20, 20), (21, 50))


def test_a_bad_file_is_not_overwritten(layout: StoreLayout) -> None:
    """The user has edited it, and is told what is wrong."""
    settings_file(layout.root).write_text('{"ib_prot": 4001}')
    with pytest.raises(SettingsError, match=r"settings\.json, ib_prot"):
        update_gateway_settings(layout, port=1)
    assert content(layout) == {"ib_prot": 4001}


def test_another_store_at_the_path_is_not_written(layout: StoreLayout, tmp_path: Path) -> None:
    """The change belongs to the store that was opened."""
    layout.root.rename(tmp_path / "moved")
    create_store(tmp_path / "data")
    with pytest.raises(StoreReplacedError):
        update_gateway_settings(layout, port=1)
    assert not settings_file(tmp_path / "data").exists()


def test_processes_that_change_it_at_once_lose_nothing(layout: StoreLayout) -> None:
    """Each changes another setting, many times."""
    spawn = multiprocessing.get_context("spawn")
    changes = ("host", ["a", "b"] * 10), ("port", [1, 2] * 10), ("client_id", [3, 4] * 10)
    processes = [spawn.Process(target=_change, args=(layout.root, *one)) for one in changes]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert content(layout) == {"ib_host": "b", "ib_port": 2, "ib_client_id_api": "4-10"}


def _change(root: Path, name: str, values: list[Any]) -> None:
    for value in values:
        update_gateway_settings(StoreLayout(root), **{name: value}, environ={})
