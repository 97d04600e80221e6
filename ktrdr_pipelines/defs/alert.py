"""Telling a person: an ERROR in the log, and a command of their own with JSON on its stdin.

Not here: when (``defs.alert_sensor``), what an outage is (``core.outages``).
"""

import json
import logging
import shlex
import subprocess
from collections.abc import Sequence
from typing import Final

from ktrdr_pipelines.core.outages import Outage

COMMAND_S: Final = 20.0
"""How long the command may take; then it is ended. A tick may run it twice, for an outage and for
an all-clear, and Dagster gives a tick 60 s: one that takes longer would tell the same again."""

_MOST_TEXT: Final = 1_000


def document_of(event: str, outages: Sequence[Outage], store: str) -> str:
    """Write what the command reads: one JSON document.

    ``event`` is ``outage`` or ``all-clear``; each outage has ``name``, ``since``, ``cause``,
    ``text`` and ``failures``.
    """
    told = [
        {
            "name": one.name,
            "since": one.since.isoformat(),
            "cause": one.cause or "died without an error",
            "text": one.text[:_MOST_TEXT],
            "failures": one.failures,
        }
        for one in outages
    ]
    return json.dumps({"event": event, "store": store, "outages": told})


def run_command(command: str, document: str, log: logging.Logger) -> bool:
    """Run the person's command, and say whether it took the document; a failure is logged."""
    try:
        done = subprocess.run(  # noqa: S603  (the person's own command, from their environment)
            shlex.split(command),
            input=document,
            capture_output=True,
            text=True,
            timeout=COMMAND_S,
            check=False,
        )
    except (OSError, ValueError, subprocess.TimeoutExpired) as error:
        log.error("KTRDR_ALERT_COMMAND could not be run: %s", error)  # noqa: TRY400
        return False
    if done.returncode != 0:
        log.error(
            "KTRDR_ALERT_COMMAND ended with exit code %d: %s", done.returncode, done.stderr[-500:]
        )
    return done.returncode == 0
