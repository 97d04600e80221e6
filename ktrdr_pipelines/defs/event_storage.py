"""Dagster's event log in SQLite, with many events of windows in one commit.

Dagster sends events that belong together as a batch, such as those of the partitions that a run is
going to materialize, if ``DAGSTER_EVENT_BATCH_SIZE`` says so. Its own SQLite storage then still
commits each of them twice, which takes a disk some 80 ms. The files are those of Dagster's storage:
either class continues with what the other has written.

Not here: which events a run reports together (``defs.runs.outcome``).
"""

import os
from collections.abc import Sequence
from typing import Any, Final

from dagster._core.events import ASSET_EVENTS
from dagster._core.events.log import EventLogEntry
from dagster._core.storage.event_log import SqliteEventLogStorage
from dagster._serdes import ConfigurableClassData

_BATCH_SIZE_VARIABLE: Final = "DAGSTER_EVENT_BATCH_SIZE"
_BATCH_SIZE: Final = 1000
"""Most events of a batch, which Dagster keeps in memory until it is complete."""


class BatchEventLogStorage(SqliteEventLogStorage):
    """Dagster's SQLite event log, which stores a batch of asset events in one commit a file.

    Where it is in use, Dagster sends batches. Source of the tables that an event changes:
    ``SqliteEventLogStorage.store_event`` of Dagster 1.13.27.
    """

    def __init__(self, base_dir: str, inst_data: ConfigurableClassData | None = None) -> None:
        super().__init__(base_dir, inst_data)
        os.environ.setdefault(_BATCH_SIZE_VARIABLE, str(_BATCH_SIZE))

    @classmethod
    def from_config_value(
        cls, inst_data: ConfigurableClassData | None, config_value: Any
    ) -> "BatchEventLogStorage":
        """Return the storage that a configuration describes."""
        return cls(inst_data=inst_data, **config_value)

    def store_event_batch(self, events: Sequence[EventLogEntry]) -> None:
        """Store events; those of one run that concern assets in one commit.

        As with single events, the log of the run has them first, then the index of all runs.
        """
        by_run: dict[str, list[EventLogEntry]] = {}
        for event in events:
            if event.dagster_event_type in ASSET_EVENTS:
                by_run.setdefault(event.run_id, []).append(event)
            else:
                self.store_event(event)
        for run_id, together in by_run.items():
            self._store_asset_events(run_id, together)

    def _store_asset_events(self, run_id: str, events: Sequence[EventLogEntry]) -> None:
        inserts = [self.prepare_insert_event(event) for event in events]
        with self.run_connection(run_id) as connection:
            for insert in inserts:
                connection.execute(insert)
        with self.index_transaction() as connection:
            ids = [connection.execute(insert).lastrowid for insert in inserts]
            self._store_asset_event_tags(connection, events, ids)
            # The row of an asset has its latest event of each type, which replaces earlier ones.
            latest = {
                (event.get_dagster_event().asset_key, event.dagster_event_type): (event, number)
                for event, number in zip(events, ids, strict=True)
            }
            for event, number in latest.values():
                self._store_asset_event(connection, event, number)
