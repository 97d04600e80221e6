"""Dagster's web UI and daemon in a process group of their own: start, wait, end.

Not here: the gateway (``cli.up``), Dagster's home (``cli.dagster_home``).
"""

import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ktrdr_pipelines.cli.last_will import last_will
from ktrdr_pipelines.cli.processes import end, start
from ktrdr_pipelines.errors import KtrdrError
from ktrdr_pipelines.store.atomic import disk_errors
from ktrdr_pipelines.store.path_kinds import require_file

HOST: Final = "127.0.0.1"
READY_S: Final = 120.0
"""How long the UI may take to answer: 5 s on an idle machine, far more on a busy one."""

_POLL_S: Final = 0.25
_TOLD_LINES: Final = 15


@dataclass(frozen=True, slots=True)
class Web:
    """A running Dagster: its process, its address, and where it logs."""

    process: "subprocess.Popen[bytes]"
    url: str
    log: Path

    def wait_until_ready(self) -> None:
        """Return once the UI answers.

        Raises:
            KtrdrError: Dagster ended, or the UI did not answer in time.
        """
        deadline_s = time.monotonic() + READY_S
        while not _answers(f"{self.url}/server_info"):
            if self.process.poll() is not None:
                raise self._ended()
            if time.monotonic() > deadline_s:
                raise KtrdrError(
                    f"Dagster's web UI at {self.url}",
                    came=f"no answer in {READY_S:g} s",
                    remedy=f"Its log is {self.log}",
                )
            time.sleep(_POLL_S)

    def wait(self) -> None:
        """Return never, unless a signal comes.

        Raises:
            KtrdrError: Dagster ended by itself.
        """
        self.process.wait()
        raise self._ended()

    def _ended(self) -> KtrdrError:
        text = self.log.read_text(encoding="utf-8", errors="replace").strip()
        last = "\n  ".join(text.splitlines()[-_TOLD_LINES:])
        return KtrdrError(
            "Dagster ended by itself",
            came=f"exit code {self.process.returncode}, and its last words were\n  {last}\n",
            remedy=f"Its log is {self.log}",
        )


@contextmanager
def dagster_web(
    home: Path, log: Path, port: int, variables: Mapping[str, str], *, keeping: int
) -> Iterator[Web]:
    """Run Dagster while the context lasts; its whole group is gone afterwards.

    It ends with this process, however that ends.

    Args:
        home: DAGSTER_HOME, and the working folder: an .env of the user's would override it.
        log: where its output goes.
        port: of the web UI, on this machine only.
        variables: what else its environment says.
        keeping: an open file that it shall keep open as long as it lives.
    """
    command = [sys.executable, "-m", "ktrdr_pipelines.cli.dagster_services"]
    env = {**os.environ, **variables, "DAGSTER_HOME": str(home), "PYTHONUNBUFFERED": "1"}
    require_file(log)
    with disk_errors(log), log.open("wb") as file:
        process = start(
            [*command, "--port", str(port), "--keep-open", str(keeping)],
            cwd=home,
            env=env,
            output=file.fileno(),
            keeping=(keeping,),
        )
    try:
        with last_will(process):
            yield Web(process, f"http://{HOST}:{port}", log)
    finally:
        end(process)


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as reply:  # noqa: S310  (our own loopback URL)
            return bool(reply.status == 200)
    except (urllib.error.URLError, OSError):
        return False
