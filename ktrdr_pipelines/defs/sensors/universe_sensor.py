"""The universe sensor: keeps each timeframe's dynamic partitions equal to the universe's symbols.

Not here: reading the universe (``store.universe_file``), the effects of a change
(``gaps.universe_diff``), filling gaps (``defs.sensors.gap_sensor``).
"""

import json
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

import dagster as dg

from ktrdr_pipelines.clock import system_now
from ktrdr_pipelines.defs.asset_specs import UNIVERSE_KEY
from ktrdr_pipelines.defs.partitions import symbols_partitions
from ktrdr_pipelines.defs.resources import StoreResource
from ktrdr_pipelines.defs.runs.active_runs import SeriesName, held_symbols, users_of
from ktrdr_pipelines.defs.runs.monthly_runs import replace_monthly_runs
from ktrdr_pipelines.domain.timeframes import Timeframe
from ktrdr_pipelines.domain.universe.universe import Universe
from ktrdr_pipelines.errors import KtrdrError

__all__ = ["PartitionChange", "change_from", "partition_changes", "universe_sensor"]

_EVERY_S = 15
_NAMED_AT_MOST = 8
_RELOAD = (
    "no asset yet, as no symbol had the timeframe when the definitions were loaded; `ktrdr up` "
    "reloads them within seconds, in other deployments press Reload definitions"
)
Request = dg.AddDynamicPartitionsRequest | dg.DeleteDynamicPartitionsRequest


@dataclass(frozen=True, slots=True)
class PartitionChange:
    """Symbols to add to and remove from the partitions of one timeframe.

    ``waiting`` are symbols that are removed later, with the run or backfill that still names them.
    """

    timeframe: Timeframe
    added: tuple[str, ...]
    removed: tuple[str, ...]
    waiting: Mapping[str, str] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.added or self.removed)

    def without_used(self, users: Mapping[SeriesName, str]) -> "PartitionChange":
        """Return this change without the removal of symbols that a run or backfill names."""
        waiting = {
            symbol: users[symbol, self.timeframe]
            for symbol in self.removed
            if (symbol, self.timeframe) in users
        }
        removed = tuple(symbol for symbol in self.removed if symbol not in waiting)
        return replace(self, removed=removed, waiting=waiting)

    def requests(self) -> list[Request]:
        """Return the Dagster requests that make this change."""
        partitions = symbols_partitions(self.timeframe)
        requests: list[Request] = []
        if self.added:
            requests.append(partitions.build_add_request(list(self.added)))
        if self.removed:
            requests.append(partitions.build_delete_request(list(self.removed)))
        return requests


def universe_sensor(
    timeframes: Iterable[Timeframe], *, loaded: Iterable[Timeframe] = tuple(Timeframe)
) -> dg.SensorDefinition:
    """Return the sensor that keeps each timeframe's partitions equal to the universe's symbols.

    ``loaded`` are the timeframes that the code location has assets of.
    """
    kept, assets = tuple(timeframes), frozenset(loaded)

    @dg.sensor(
        name="universe_sensor",
        minimum_interval_seconds=_EVERY_S,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Keeps the partitions of every timeframe in line with universe.yaml. The bars "
        "of a removed symbol stay on disk; its partitions go when no backfill or run names them.",
    )
    def sensor(context: dg.SensorEvaluationContext, store: StoreResource) -> dg.SensorResult:
        try:
            universe, problem = store.universe_file().read()
        except KtrdrError as error:
            return dg.SensorResult(skip_reason=str(error))
        # Each time: a web server that still has earlier definitions may launch one at any moment.
        for replaced in replace_monthly_runs(context.instance, system_now()):
            context.log.warning(str(replaced))
        changes = partition_changes(context.instance, universe, kept)
        # Checksums of the entries, kept in the cursor, show which ones were edited.
        prints = {
            symbol: f"{zlib.crc32(repr(one).encode()):08x}"
            for symbol, one in universe.instruments.items()
        }
        before = json.loads(context.cursor) if context.cursor else None
        known = prints if before is None else before
        edited = [
            symbol for symbol in prints if known.get(symbol, prints[symbol]) != prints[symbol]
        ]
        if problem is not None:
            context.log.error("universe.yaml is invalid; using the last good version: %s", problem)
        text = "; ".join(filter(None, (_text(changes, edited), universe.windows_notice)))
        if edited or any(changes):
            context.log.info(text)
        if new := [str(one) for one in kept if universe.series(one) and one not in assets]:
            text = f"{', '.join(new)}: {_RELOAD}; {text}"
        if problem is not None:
            text = f"{problem}. Using the last good version: {text}"
        return dg.SensorResult(
            dynamic_partitions_requests=[one for change in changes for one in change.requests()],
            skip_reason=text,
            cursor=json.dumps(prints),
            # An event each time: without a change there is none.
            asset_events=[_observed(universe, text)] if prints != before else [],
        )

    return sensor


def _observed(universe: Universe, text: str) -> dg.AssetObservation:
    """Return the observation of a universe that was edited, or is read for the first time."""
    used = {series.timeframe for series in universe.series()}
    metadata: dict[str, dg.MetadataValue] = {
        "file": dg.MetadataValue.text(universe.name),
        "symbols": dg.MetadataValue.int(len(universe.instruments)),
        "series": dg.MetadataValue.int(len(universe.series())),
        "timeframes": dg.MetadataValue.text(
            ", ".join(one.value for one in Timeframe if one in used)
        ),
        "change": dg.MetadataValue.text(text),
    }
    return dg.AssetObservation(UNIVERSE_KEY, metadata=metadata)


def partition_changes(
    instance: dg.DagsterInstance, universe: Universe, timeframes: Iterable[Timeframe]
) -> list[PartitionChange]:
    """Return how the partitions of each timeframe differ from the universe.

    A removed symbol keeps its bars and its events; only its partition is hidden, once no unfinished
    backfill and no active run names it.
    """
    changes = [change_from(held_symbols(instance, one), universe, one) for one in timeframes]
    if not any(change.removed for change in changes):
        return changes
    users = users_of(instance)
    return [change.without_used(users) for change in changes]


def change_from(held: Iterable[str], universe: Universe, timeframe: Timeframe) -> PartitionChange:
    """Return how the symbols in ``held``, which have partitions, differ from the universe."""
    known = dict.fromkeys(held)
    wanted = dict.fromkeys(series.symbol for series in universe.series(timeframe))
    return PartitionChange(
        timeframe,
        added=tuple(symbol for symbol in wanted if symbol not in known),
        removed=tuple(symbol for symbol in known if symbol not in wanted),
    )


def _text(changes: Iterable[PartitionChange], edited: list[str]) -> str:
    added, removed = _by_symbol(changes, "added"), _by_symbol(changes, "removed")
    parts = [
        f"added {_named(added)}: new in the universe" if added else "",
        f"removed {_named(removed)}: no longer in the universe; their bars stay on disk"
        if removed
        else "",
        _waiting(changes),
        f"changed {_few(edited)}: their entries were edited" if edited else "",
    ]
    text = "; ".join(part for part in parts if part)
    return text or "the partitions match the universe"


def _waiting(changes: Iterable[PartitionChange]) -> str:
    """Return which removed symbols keep their partitions for now, and what names them."""
    names: dict[str, str] = {}
    for change in changes:
        names |= change.waiting
    if not names:
        return ""
    users = _few(list(dict.fromkeys(names.values())))
    return f"{_few(list(names))}: no longer in the universe; their partitions go after {users}"


def _by_symbol(changes: Iterable[PartitionChange], which: str) -> dict[str, list[Timeframe]]:
    found: dict[str, list[Timeframe]] = {}
    for change in changes:
        for symbol in getattr(change, which):
            found.setdefault(symbol, []).append(change.timeframe)
    return found


def _named(symbols: Mapping[str, list[Timeframe]]) -> str:
    return _few([f"{symbol} ({', '.join(kept)})" for symbol, kept in symbols.items()])


def _few(texts: list[str]) -> str:
    more = len(texts) - _NAMED_AT_MOST
    return ", ".join(texts[:_NAMED_AT_MOST]) + (f" and {more} more" if more > 0 else "")
