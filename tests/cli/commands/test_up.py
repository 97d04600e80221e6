"""ktrdr up: Dagster over a store with a gateway, and no process left afterwards."""

import fcntl
import hashlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import dagster as dg
import pytest
from dagster._core.instance import InstanceRef
from ruamel.yaml import YAML

from ktrdr_pipelines.app.setup import (
    EARLIER,
    accept_example,
    prepare_home,
    setting_overrides,
    waits_for_universe,
)
from ktrdr_pipelines.app.views.service_documents import UpDocument
from ktrdr_pipelines.app.workspace import Workspace
from ktrdr_pipelines.cli.commands.up import _backlog, _only_one, _say_ready
from ktrdr_pipelines.cli.processes import end, lives, start
from ktrdr_pipelines.settings import effective_settings, settings_file
from ktrdr_pipelines.store.layout import open_store
from tests.support.archives import unpack

ROOT = Path(__file__).parents[3]


def test_a_folder_that_is_no_store_is_refused(ktrdr: Any, data: Path, helpers: Any) -> None:
    """A mistyped folder does not become a store."""
    ktrdr("up", "--port", str(helpers.free_port())).is_error(2, str(data), "ktrdr init")
    assert not data.exists()


def test_without_a_gateway_it_says_how_to_get_one(ktrdr: Any, store: Path, helpers: Any) -> None:
    """The error lists the ways to set one up; the store is usable all the same."""
    result = ktrdr("up", "--port", str(helpers.free_port()))
    result.is_error(1, "no gateway responds at 127.0.0.1:", "nothing listens", "--simulate")
    result.is_error(1, "4002", "4001", "127.0.0.1", "Read-Only API", "container")
    assert (store / "universe.yaml").is_file()
    assert ktrdr("status").code == 0


def test_a_port_in_use_is_refused_before_anything_is_started(ktrdr: Any, data: Path) -> None:
    """The error names the option and the port."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        ktrdr("up", "--port", str(port)).is_error(1, f"--port {port}", "choose another")
    assert not data.exists()


@pytest.mark.parametrize("is_in_file", [False, True])
def test_the_advice_fixes_no_port_that_the_file_of_settings_may_change(
    store: Path,
    is_in_file: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A variable would take precedence over the file in the other terminal."""
    if is_in_file:
        monkeypatch.delenv("IB_PORT", raising=False)
        settings_file(store).write_text('{"ib_port": 4999}')
    else:
        monkeypatch.setenv("IB_PORT", "4999")
    settings = effective_settings(flags={"ktrdr_data": store})
    dagster: Any = SimpleNamespace(url="http://127.0.0.1:3000", log=store / "dagster.log")
    _say_ready(Workspace(settings, open_store(store)), dagster, (), None, as_json=False)
    said = capsys.readouterr().out
    assert f"export KTRDR_DATA={store}" in said
    assert ("IB_PORT=4999" in said) is not is_in_file


def test_the_example_is_not_loaded_before_it_is_edited_or_accepted(
    ktrdr: Any, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The plan is shown with both ways to go on; an edit, `--yes` or bars end the waiting."""
    assert ktrdr("init").code == 0
    layout = open_store(data)
    workspace = Workspace(effective_settings(flags={"ktrdr_data": data}), layout)
    assert waits_for_universe(layout)
    plan = _backlog(workspace, waits=True)
    assert plan is not None
    dagster: Any = SimpleNamespace(url="http://127.0.0.1:3000", log=data / "dagster.log")
    _say_ready(workspace, dagster, (), plan, as_json=False)
    said = capsys.readouterr().out
    _say_ready(workspace, dagster, (), plan, as_json=True)
    document = UpDocument.model_validate_json(capsys.readouterr().out)
    assert document.backlog is not None
    assert (document.backlog.requests, document.waits_for_universe) == (plan.requests, True)
    assert "is not loaded yet" in said
    assert str(layout.universe) in said
    assert "ktrdr up --yes" in said
    text = layout.universe.read_bytes()
    layout.universe.write_bytes(text + b"\n")
    assert not waits_for_universe(layout)
    layout.universe.write_bytes(text)
    accept_example(layout)
    assert not waits_for_universe(layout)
    plan = _backlog(workspace, waits=False)
    assert plan is not None
    assert plan.parts


def test_a_store_of_simulated_bars_never_waits(ktrdr: Any, data: Path) -> None:
    """Its requests reach no gateway of IB."""
    assert ktrdr("init", "--origin", "simulated").code == 0
    assert not waits_for_universe(open_store(data))


@pytest.mark.slow
def test_the_end_of_the_simulator_ends_the_command(helpers: Any, data: Path) -> None:
    """It says how the simulated gateway ended, and leaves no process."""
    arguments = ("up", "--simulate", "--port", str(helpers.free_port()), "--json")
    with helpers.started(*arguments) as up:
        assert up.stdout.readline(), up.stderr.read()
        groups = helpers.children_groups(up.pid)
        (gateway,) = (one for one in groups if b"simulate" in command_line(one))
        os.kill(gateway, signal.SIGKILL)
        out, _ = up.communicate(timeout=180)
    assert up.returncode == 1
    message = json.loads(out)["error"]["message"]
    assert "the simulated gateway" in message
    assert "SIGKILL" in message
    assert [member for group in groups for member in helpers.group_members(group)] == []


def command_line(process: int) -> list[bytes]:
    """Return the arguments of a process."""
    try:
        return Path(f"/proc/{process}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return []


def test_the_home_takes_the_committed_settings_and_keeps_edits(ktrdr: Any, store: Path) -> None:
    """Dagster's settings are copied once, and edits are kept."""
    home = prepare_home(open_store(store))
    path = home / "dagster.yaml"
    assert path.read_bytes() == (ROOT / "data" / "dagster" / "dagster.yaml").read_bytes()
    path.write_text("telemetry: {enabled: false}\n")
    prepare_home(open_store(store))
    assert path.read_text() == "telemetry: {enabled: false}\n"


def test_settings_of_an_earlier_version_are_replaced(store: Path) -> None:
    """An unedited file gets what was added later, and new comments; its other values stay."""
    path = prepare_home(open_store(store)) / "dagster.yaml"
    text = path.read_text()
    earlier = (ROOT / "tests" / "fixtures" / "dagster_earlier.yaml").read_text()
    without_timeouts = re.sub(
        r"  # A run whose.*\n  start_timeout.*\n  cancel_timeout.*\n", "", earlier
    ).replace("after_run_end_seconds: 10", "after_run_end_seconds: 60")
    for older in (earlier, without_timeouts):
        assert hashlib.sha256(older.encode()).hexdigest() in EARLIER
        path.write_text(older)
        prepare_home(open_store(store))
        assert path.read_text() == text
    settings = YAML(typ="safe", pure=True).load(text)
    assert settings.pop("scheduler")["class"] == "StoreScheduler"  # was added later
    before = YAML(typ="safe", pure=True).load(earlier)
    assert before["concurrency"]["runs"].pop("max_concurrent_runs") == 6
    assert settings["concurrency"]["runs"].pop("max_concurrent_runs") == 8  # was raised later
    assert settings == before
    assert settings["run_monitoring"]["start_timeout_seconds"] <= 90


@pytest.mark.parametrize("archive", ["dagster_v6.tar.gz", "store_v7.tar.gz"])
def test_edited_settings_get_timeouts_that_they_do_not_mention(
    archive: str, store: Path, tmp_path: Path
) -> None:
    """The file is unchanged, and its own settings of run monitoring take precedence."""
    unpack(ROOT / "tests" / "fixtures" / archive, tmp_path)
    shutil.copytree(tmp_path / "dagster", store / "dagster")
    path = store / "dagster" / "dagster.yaml"
    text = path.read_text()
    home = prepare_home(open_store(store))
    assert path.read_text() == text
    assert monitoring(home)["start_timeout_seconds"] == 90
    path.write_text(f"{text}\nrun_monitoring: {{enabled: yes, start_timeout_seconds: 7}}\n")
    assert monitoring(home)["start_timeout_seconds"] == 7
    assert monitoring(home)["enabled"] is True
    assert monitoring(home)["cancel_timeout_seconds"] == 60


def monitoring(home: Path) -> Any:
    """Return the settings of run monitoring with which the services of a home run."""
    ref = InstanceRef.from_dir(str(home), overrides=setting_overrides(home))
    with dg.DagsterInstance.from_ref(ref) as instance:
        assert instance.run_monitoring_enabled
        return instance.run_monitoring_settings


def test_the_storage_of_events_is_completed_unless_the_user_chose_one(tmp_path: Path) -> None:
    """Larger commits need no edit of a home's settings, and leave a storage of the user alone."""
    (tmp_path / "dagster.yaml").write_text("telemetry: {enabled: false}\n")
    own = InstanceRef.from_dir(str(tmp_path)).event_storage_data
    ours = InstanceRef.from_dir(
        str(tmp_path), overrides=setting_overrides(tmp_path)
    ).event_storage_data
    assert own is not None
    assert ours is not None
    assert ours.class_name == "BatchEventLogStorage"
    assert Path(ours.config_dict["base_dir"]) == Path(own.config_dict["base_dir"])
    (tmp_path / "dagster.yaml").write_text("storage: {sqlite: {base_dir: elsewhere}}\n")
    assert "event_log_storage" not in setting_overrides(tmp_path)


def test_the_group_of_a_killed_command_is_ended(helpers: Any) -> None:
    """SIGKILL of the command ends the whole group that it started, grandchildren too."""
    code = (
        "import sys, time\n"
        "from ktrdr_pipelines.cli.processes import start, watched\n"
        'child = \'import subprocess, sys; subprocess.run([sys.executable, "-c", '
        '"input()"], stdin=subprocess.PIPE)\'\n'
        "child = start([sys.executable, '-c', child])\n"
        "with watched(child):\n"
        "    print(child.pid, flush=True)\n"
        "    time.sleep(600)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as one:
        group = int(one.stdout.readline())
        helpers.wait_for(lambda: len(helpers.group_members(group)) == 2)
        one.kill()
    helpers.wait_for(lambda: not helpers.group_members(group))


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="the system has no /proc")
def test_a_process_lives_until_its_last_thread_has_ended(helpers: Any) -> None:
    """A process whose first thread has ended still holds its locks."""
    code = (
        "import ctypes, threading\n"
        "threading.Thread(target=input).start()\n"
        "ctypes.CDLL(None).pthread_exit(None)\n"
    )
    one = start([sys.executable, "-c", code])
    stat = Path(f"/proc/{one.pid}/stat")
    try:
        helpers.wait_for(lambda: stat.read_text().rpartition(")")[2].split()[0] == "Z")
        assert lives(one.pid)
    finally:
        end(one, grace_s=0.3)  # no thread is left that handles an interrupt
    assert not lives(one.pid)


@pytest.mark.slow
def test_it_starts_dagster_and_leaves_no_process(helpers: Any, data: Path) -> None:
    """The UI responds with a simulated gateway; Ctrl-C ends every process, with exit code 0."""
    arguments = ("up", "--simulate", "--port", str(helpers.free_port()), "--json")
    with helpers.started(*arguments) as up:
        line = up.stdout.readline()
        assert line, up.stderr.read()
        result = json.loads(line)
        entry = f"{result['url']}/server_info"
        with urllib.request.urlopen(entry, timeout=120) as reply:  # noqa: S310  (loopback)
            assert reply.status == 200
        foreign = urllib.request.Request(entry, headers={"Host": "evil.com"})  # noqa: S310
        with pytest.raises(urllib.error.HTTPError, match="400"):
            urllib.request.urlopen(foreign, timeout=120)  # noqa: S310
        groups = helpers.children_groups(up.pid)
        assert len(groups) == 3  # the gateway, Dagster, and what ends Dagster where this cannot
        up.send_signal(signal.SIGINT)
        _, err = up.communicate(timeout=180)
    assert up.returncode == 0, err
    assert result["store"] == str(data / "simulated")
    assert (data / "simulated" / "dagster" / "history").is_dir()
    assert [member for group in groups for member in helpers.group_members(group)] == []


def test_a_store_of_another_origin_is_refused_before_anything_is_started(
    ktrdr: Any, data: Path, gateway: Any, helpers: Any
) -> None:
    """A store of real bars and a simulated gateway are refused by the command itself."""
    assert ktrdr("init", "--origin", "ib").code == 0
    result = ktrdr("up", "--port", str(helpers.free_port()))
    result.is_error(1, str(data), "holds ib bars", "simulated bars", "KTRDR_DATA")


def test_a_hanging_gateway_is_reported(
    ktrdr: Any, store: Path, silent_gateway: int, helpers: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error says what is wrong with the gateway, not how to set one up."""
    monkeypatch.setenv("IB_TIMEOUT", "0.2")
    result = ktrdr("up", "--port", str(helpers.free_port()))
    result.is_error(1, str(silent_gateway), "did not answer", "look at its window")
    assert "docker" not in result.all


def test_a_second_command_over_one_store_is_refused(
    ktrdr: Any, store: Path, gateway: Any, helpers: Any
) -> None:
    """It is refused without looking at the first one's Dagster."""
    with _only_one(open_store(store)):
        result = ktrdr("up", "--port", str(helpers.free_port()))
    result.is_error(1, str(store), "another `ktrdr up`", "up.lock")


def test_the_dagster_of_a_killed_command_is_ended(store: Path) -> None:
    """Its process group is in the file of the lock that it holds."""
    layout = open_store(store)
    child = f"import os; os.fork() and os.wait() or exec({'input()'!r})"
    with layout.lock("dagster").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        left = start([sys.executable, "-c", child], keeping=(lock.fileno(),))
        lock.write(f"{left.pid}\n")
    try:
        with _only_one(layout) as keeping:
            assert not lives(left.pid)
            assert os.fstat(keeping).st_size == 0
    finally:
        end(left)


def test_a_second_dagster_over_one_store_is_refused(
    ktrdr: Any, store: Path, gateway: Any, helpers: Any
) -> None:
    """It is, also if the file of the lock names no process group."""
    layout = open_store(store)
    with layout.lock("dagster").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        left = start([sys.executable, "-c", "input()"], keeping=(lock.fileno(),))
    try:
        result = ktrdr("up", "--port", str(helpers.free_port()))
        result.is_error(1, str(store), "another `ktrdr up` left behind", "dagster.lock")
    finally:
        end(left)
