"""``ktrdr serve``: where it listens, what it refuses, and that it runs beside Dagster."""

import json
import signal
import socket
import subprocess
from pathlib import Path
from typing import Any

import httpx
import pytest

from ktrdr_pipelines.app.views.service_documents import ServeDocument

TOKEN = "a-secret-of-some-length"  # noqa: S105  (of the tests)


def test_a_port_in_use_is_refused(ktrdr: Any, store: Path) -> None:
    """The error names the port and the option."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        ktrdr("serve", "--port", str(port)).is_error(1, f"127.0.0.1 port {port}", "--port")


def test_other_machines_need_a_token(
    ktrdr: Any, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without one the command refuses to listen where they could reach it."""
    for host in ("0.0.0.0", "::", "192.0.2.1", "example.invalid"):  # noqa: S104
        ktrdr("serve", "--host", host).is_error(2, f"--host {host}", "KTRDR_API_TOKEN")
    monkeypatch.setenv("KTRDR_API_TOKEN", TOKEN)
    result = ktrdr("serve", "--host", "192.0.2.1", "--port", "0")  # not of this machine
    result.is_error(1, "cannot listen on 192.0.2.1")
    assert TOKEN not in result.all


def test_without_a_store_it_is_refused(ktrdr: Any, data: Path) -> None:
    """As by every command but those that make one."""
    ktrdr("serve", "--port", "0").is_error(2, str(data), "ktrdr init")
    assert not data.exists()


@pytest.mark.slow
def test_it_serves_until_it_is_stopped(
    store: Path, helpers: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a broken universe the last good one, and with a token that no output holds."""
    monkeypatch.setenv("KTRDR_API_TOKEN", TOKEN)
    universe = store / "universe.yaml"
    universe.write_text(universe.read_text() + "  TSLA: {timeframe: [1d]}\n")
    with helpers.started("serve", "--port", "0", "--allow-host", "box.local", "--json") as server:
        line = server.stdout.readline()
        assert line, server.stderr.read()
        document = json.loads(line)
        assert ServeDocument.model_validate(document).token_required
        headers = {"Authorization": f"Bearer {TOKEN}", "Host": "box.local"}
        with httpx.Client(base_url=document["url"], headers=headers) as client:
            found = client.get("/api/v1/system/gap-filler-status").json()["data"]
            assert set(found["symbols"]) == {"AAPL", "MSFT", "EURUSD"}
            assert client.get("/api/v1/symbols", headers={"Authorization": ""}).status_code == 401
        server.send_signal(signal.SIGINT)
        out, err = server.communicate(timeout=60)
    assert (server.returncode, out) == (0, "")
    assert (document["store"], document["token_required"]) == (str(store), True)
    assert "timeframe" in err
    assert TOKEN not in line + err


@pytest.mark.slow
def test_it_runs_beside_dagster(helpers: Any, data: Path) -> None:
    """Its end is told and Dagster goes on; both are gone at the end."""
    ports = [str(helpers.free_port()) for _ in range(2)]
    arguments = ("up", "--simulate", "--port", ports[0], "--serve", "--serve-port", ports[1])
    with helpers.started(*arguments, "--json") as up:
        line = up.stdout.readline()
        assert line, up.stderr.read()
        document = json.loads(line)
        groups = helpers.children_groups(up.pid)
        with httpx.Client(base_url=document["rest_url"], timeout=60) as client:
            assert client.get("/api/v1/health").json()["data"]["alive"] is True
            status = client.get("/api/v1/system/system-status").json()["data"]
            assert status["store"] == str(data / "simulated")
        (rest,) = (one for one in groups if "serve" in command_line(one))
        subprocess.run(["kill", "-9", str(rest)], check=True)
        told = ""
        while "REST API exited by itself" not in told:
            told = up.stderr.readline()
            assert told
        assert httpx.get(f"{document['url']}/server_info", timeout=60).status_code == 200
        up.send_signal(signal.SIGINT)
        _, err = up.communicate(timeout=180)
    assert up.returncode == 0, err
    assert [member for group in groups for member in helpers.group_members(group)] == []


def command_line(process: int) -> list[str]:
    """Return the arguments of a process."""
    try:
        return Path(f"/proc/{process}/cmdline").read_text().split("\0")
    except OSError:
        return []


def test_two_servers_on_one_port_are_refused(ktrdr: Any, data: Path, helpers: Any) -> None:
    """Before anything is started."""
    port = str(helpers.free_port())
    result = ktrdr("up", "--simulate", "--port", port, "--serve", "--serve-port", port)
    result.is_error(2, f"--serve-port {port}", "different ports")
    with socket.create_server(("127.0.0.1", 0)) as server:
        taken = str(server.getsockname()[1])
        ktrdr("up", "--port", port, "--serve", "--serve-port", taken).is_error(
            1, f"--serve-port {taken}"
        )
    assert not data.exists()
