"""A store of Dagster's events that counts what is written to it."""

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import dagster as dg
from dagster._core.events.log import EventLogEntry
from dagster._core.instance import InstanceRef

from ktrdr_pipelines.defs.event_storage import BatchEventLogStorage


class CountedEvents(BatchEventLogStorage):
    """Counts single events and batches, by the type of their events, for all of its instances."""

    singles: ClassVar[Counter[str]] = Counter()
    batches: ClassVar[list[tuple[str, int]]] = []

    def store_event(self, event: EventLogEntry) -> None:
        self.singles[_kind(event)] += 1
        super().store_event(event)

    def store_event_batch(self, events: Sequence[EventLogEntry]) -> None:
        [kind] = {_kind(event) for event in events}
        self.batches.append((kind, len(events)))
        super().store_event_batch(events)


def _kind(event: EventLogEntry) -> str:
    kind = event.dagster_event_type
    return "LOG" if kind is None else kind.value


@contextmanager
def counted_instance(home: Path) -> Iterator[dg.DagsterInstance]:
    """Open an instance that counts its events from now on."""
    CountedEvents.singles.clear()
    CountedEvents.batches.clear()
    home.mkdir(exist_ok=True)
    storage: dict[str, Any] = {
        "module": "tests.support.counted_events",
        "class": "CountedEvents",
        "config": {"base_dir": str(home / "history" / "runs")},
    }
    ref = InstanceRef.from_dir(
        str(home), overrides={"event_log_storage": storage, "telemetry": {"enabled": False}}
    )
    with dg.DagsterInstance.from_ref(ref) as instance:
        yield instance
