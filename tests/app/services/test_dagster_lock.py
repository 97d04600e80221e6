"""The lock of a store's Dagster: who takes it, who shares it, and who does not touch it."""

import subprocess
import sys
from pathlib import Path

import pytest

from ktrdr_pipelines.app.services.dagster_lock import (
    NAME,
    SERVED,
    is_code_server,
    is_daemon,
    share,
    take,
)
from ktrdr_pipelines.errors import StoreError
from ktrdr_pipelines.store.layout import create_store

SHARING = """
import sys
from pathlib import Path
from ktrdr_pipelines.app.services.dagster_lock import share
from ktrdr_pipelines.store.layout import open_store
share(open_store(Path(sys.argv[1])), {})
print("shared", flush=True)
input()
"""


def test_ktrdr_up_and_other_daemons_exclude_each_other(tmp_path: Path) -> None:
    """Others share the lock until they end; `ktrdr up` holds it alone; its own processes load."""
    layout = create_store(tmp_path / "data")
    path = layout.lock(NAME)
    path.write_text("4711\n")  # the process group of an earlier `ktrdr up`
    command = [sys.executable, "-c", SHARING, str(layout.root)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with path.open("a+") as file:
        with subprocess.Popen(command, **pipes) as one, subprocess.Popen(command, **pipes) as two:
            assert {one.stdout.readline(), two.stdout.readline()} == {b"shared\n"}
            assert not take(file)
            assert path.read_text() == ""  # or `ktrdr up` would end that group
        assert take(file)
        with pytest.raises(StoreError, match="ktrdr up"):
            share(layout, {})
        share(layout, {SERVED: str(layout.root)})


@pytest.mark.parametrize(
    ("arguments", "serves", "drives"),
    [
        ("/bin/dagster api grpc --socket s", True, False),
        ("/lib/dagster/__main__.py api grpc -m x", True, False),
        ("/lib/dagster/_daemon/__main__.py run --workspace w", False, True),
        ("/bin/dagster-daemon run", False, True),
        ("/bin/dagster dev -w workspace.yaml", False, True),
        ("/lib/dagster/__main__.py dev", False, True),
        ("/bin/dagster definitions validate", False, False),
        ("/bin/dagster api execute_run x", False, False),
        ("/bin/dagster-webserver", False, False),
        ("/bin/ktrdr up", False, False),
        ("", False, False),
    ],
)
def test_code_servers_and_daemons_are_known_by_their_arguments(
    arguments: str, *, serves: bool, drives: bool
) -> None:
    """Those that only load the definitions, or show them, are neither."""
    found = arguments.split(" ")
    assert (is_code_server(found), is_daemon(found)) == (serves, drives)
