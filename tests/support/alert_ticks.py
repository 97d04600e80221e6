"""Ticks of the alert sensor, whose command records the alerts it is given."""

import json
import sys
from pathlib import Path
from typing import Any

import dagster as dg

from ktrdr_pipelines.defs.resources import StoreResource
from ktrdr_pipelines.defs.sensors.alert_sensor import alert_sensor


class AlertTicker:
    """Ticks the sensor over a store; each tick is that of a new sensor, as after a restart.

    Args:
        folder: where the command and what it records are written.
        instance: the instance whose runs the sensor sees.
        data_dir: the store that the alerts name.
    """

    def __init__(self, folder: Path, instance: dg.DagsterInstance, data_dir: Path) -> None:
        self._recorded = folder / "alerts.jsonl"
        script = folder / "alert.py"
        script.write_text(
            "import pathlib, sys\n"
            f"with pathlib.Path({str(self._recorded)!r}).open('a') as file:\n"
            "    file.write(sys.stdin.read() + '\\n')\n"
        )
        self.instance, self.data_dir = instance, data_dir
        self.command: str | None = f"{sys.executable} {script}"
        self.cursor: str | None = None
        self.checks: tuple[dg.AssetCheckKey, ...] = ()

    def tick(self) -> str:
        """Tick with the stored cursor, and return what the tick says."""
        context = dg.build_sensor_context(
            instance=self.instance,
            cursor=self.cursor,
            resources={"store": StoreResource(data_dir=str(self.data_dir))},
        )
        sensor: Any = alert_sensor(self.command, self.checks)
        result = sensor(context)
        self.cursor = result.cursor
        return str(result.skip_reason.skip_message)

    def alerts(self) -> list[dict[str, Any]]:
        """Return the documents that the command was given, oldest first."""
        if not self._recorded.exists():
            return []
        return [json.loads(line) for line in self._recorded.read_text().splitlines()]
