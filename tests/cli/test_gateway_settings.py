"""Commands and the gateway's settings: the file, the older client id, the token."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ktrdr_pipelines.app.workspace import Workspace
from ktrdr_pipelines.cli.commands.up import _variables
from ktrdr_pipelines.cli.processes import child_environment, end, start
from ktrdr_pipelines.settings import effective_settings, load_settings, settings_file


@pytest.fixture
def in_file(store: Path, gateway: Any, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make the file of the store name the gateway, instead of the environment."""
    monkeypatch.delenv("IB_PORT")
    path = settings_file(store)
    path.write_text(json.dumps({"ib_port": gateway.port}))
    return path


def test_commands_use_the_file(ktrdr: Any, in_file: Path, gateway: Any) -> None:
    """Each reads it when it starts; the environment takes precedence."""
    assert ktrdr("health", "--json").document["gateway"] == f"127.0.0.1:{gateway.port}"
    assert ktrdr("load", "AAPL", "1d", "--start", "2024-01-02").code == 0
    in_file.write_text('{"ib_prot": 4002}')
    for command in (("status",), ("health",), ("load", "AAPL", "1d"), ("up",)):
        ktrdr(*command).is_error(2, f"{in_file}, ib_prot", "Did you mean ib_port")


def test_dagsters_processes_read_the_file_themselves(
    in_file: Path, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A gateway that a flag sets, as that of a simulator, is fixed for them by the environment."""
    assert not {"IB_HOST", "IB_PORT"} & set(_variables(Workspace.open()))
    own = effective_settings(flags={"ib_host": "127.0.0.1", "ib_port": 7, "ktrdr_data": store})
    variables = _variables(Workspace.open(own))
    assert (variables["IB_HOST"], variables["IB_PORT"]) == ("127.0.0.1", "7")
    assert effective_settings(variables).ib_port == 7
    monkeypatch.setenv("IB_PORT", "9")
    inherited = {**child_environment(), **_variables(Workspace.open())}
    assert load_settings(inherited).ib_port == 9


def test_the_client_id_of_older_systems_is_a_warning(
    ktrdr: Any, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is printed once to stderr, and the result stays a document."""
    monkeypatch.setenv("IB_CLIENT_ID", "7")
    result = ktrdr("status", "--json")
    assert result.code == 0
    assert result.document["store"]
    assert result.err.count("Warning: IB_CLIENT_ID=7 ") == 1
    assert "IB_CLIENT_ID_API=7-10" in result.err
    monkeypatch.setenv("IB_CLIENT_ID", "0")
    ktrdr("status").is_error(2, "IB_CLIENT_ID='0'")


def test_no_child_inherits_the_token(monkeypatch: pytest.MonkeyPatch) -> None:
    """Unless the command gives it an environment that has it."""
    monkeypatch.setenv("KTRDR_API_TOKEN", "0123456789abcdef")
    code = "import os; print(os.environ.get('KTRDR_API_TOKEN'), os.environ['KTRDR_DATA'])"
    data = child_environment()["KTRDR_DATA"]
    own = {**child_environment(), "KTRDR_API_TOKEN": "x"}
    for env, token in ((None, "None"), (own, "x")):
        process = start([sys.executable, "-c", code], env=env, output=subprocess.PIPE)
        assert process.stdout is not None
        assert process.stdout.read() == f"{token} {data}\n".encode()
        end(process)
