"""ktrdr up: Dagster over a store with a gateway, and nothing of it left afterwards."""

import fcntl
import json
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from ktrdr_pipelines.cli.dagster_home import prepare_home
from ktrdr_pipelines.cli.processes import end, start
from ktrdr_pipelines.store.layout import open_store

ROOT = Path(__file__).parents[2]


def test_without_a_gateway_it_says_how_to_get_one(ktrdr: Any, data: Path, hands: Any) -> None:
    """What is missing, and every way to it; the store is made all the same."""
    told = ktrdr("up", "--port", str(hands.free_port()))
    told.is_error(1, "no gateway answers at 127.0.0.1:", "nothing listens", "--simulate")
    told.is_error(1, "4002", "4001", "127.0.0.1", "Read-Only API", "ghcr.io/gnzsnz/ib-gateway")
    assert (data / "universe.yaml").is_file()
    assert ktrdr("status").code == 0


def test_a_port_in_use_is_told_before_anything_is_started(ktrdr: Any, data: Path) -> None:
    """The text names the option and the port."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        ktrdr("up", "--port", str(port)).is_error(1, f"--port {port}", "choose another")
    assert not data.exists()


def test_the_home_takes_the_committed_settings_and_keeps_edits(ktrdr: Any, store: Path) -> None:
    """Dagster's settings are copied once; what a person changes there stays."""
    home = prepare_home(open_store(store))
    path = home / "dagster.yaml"
    assert path.read_bytes() == (ROOT / "data" / "dagster" / "dagster.yaml").read_bytes()
    path.write_text("telemetry: {enabled: false}\n")
    prepare_home(open_store(store))
    assert path.read_text() == "telemetry: {enabled: false}\n"


def test_what_a_killed_command_started_ends_with_it(hands: Any) -> None:
    """Kill -9 of the command ends the whole group that it had started, grandchildren too."""
    code = (
        "import sys, time\n"
        "from ktrdr_pipelines.cli.last_will import last_will\n"
        "from ktrdr_pipelines.cli.processes import start\n"
        'child = \'import subprocess, sys; subprocess.run([sys.executable, "-c", '
        '"input()"], stdin=subprocess.PIPE)\'\n'
        "child = start([sys.executable, '-c', child])\n"
        "with last_will(child):\n"
        "    print(child.pid, flush=True)\n"
        "    time.sleep(600)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as one:
        group = int(one.stdout.readline())
        hands.wait_for(lambda: len(hands.group_members(group)) == 2)
        one.kill()
    hands.wait_for(lambda: not hands.group_members(group))


@pytest.mark.slow
def test_it_starts_dagster_and_leaves_nothing(hands: Any, data: Path) -> None:
    """With a simulated gateway the UI answers; Ctrl-C ends every process, and that is success."""
    arguments = ("up", "--simulate", "--port", str(hands.free_port()), "--json")
    with hands.started(*arguments) as up:
        line = up.stdout.readline()
        assert line, up.stderr.read()
        told = json.loads(line)
        page = f"{told['url']}/server_info"
        with urllib.request.urlopen(page, timeout=120) as reply:  # noqa: S310  (loopback)
            assert reply.status == 200
        groups = hands.children_groups(up.pid)
        assert len(groups) == 3  # the gateway, Dagster, and what ends Dagster where this cannot
        up.send_signal(signal.SIGINT)
        _, err = up.communicate(timeout=180)
    assert up.returncode == 0, err
    assert told["store"] == str(data / "simulated")
    assert (data / "simulated" / "dagster" / "history").is_dir()
    assert [member for group in groups for member in hands.group_members(group)] == []


def test_a_store_of_another_origin_is_refused_before_anything_is_started(
    ktrdr: Any, data: Path, gateway: Any, hands: Any
) -> None:
    """A store of real bars and a simulated gateway: said at once, not by every run."""
    assert ktrdr("init", "--origin", "ib").code == 0
    told = ktrdr("up", "--port", str(hands.free_port()))
    told.is_error(1, str(data), "holds ib bars", "simulated bars", "KTRDR_DATA")


def test_a_gateway_that_hangs_is_told_as_it_is(
    ktrdr: Any, data: Path, silent_gateway: int, hands: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever has a gateway is not told how to get one, but what is wrong with it."""
    monkeypatch.setenv("IB_TIMEOUT", "0.2")
    told = ktrdr("up", "--port", str(hands.free_port()))
    told.is_error(1, str(silent_gateway), "did not answer", "look at its window")
    assert "docker" not in told.all


def test_a_second_dagster_over_one_store_is_refused(
    ktrdr: Any, store: Path, gateway: Any, hands: Any
) -> None:
    """Also where only the Dagster is left of a killed `ktrdr up`: whoever keeps the lock open."""
    layout = open_store(store)
    with layout.lock("dagster").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        left = start([sys.executable, "-c", "input()"], keeping=(lock.fileno(),))
    try:
        told = ktrdr("up", "--port", str(hands.free_port()))
        told.is_error(1, str(store), "another `ktrdr up`", "dagster.lock")
    finally:
        end(left)
