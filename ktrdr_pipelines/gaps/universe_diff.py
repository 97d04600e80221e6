"""How a universe and a store differ: changed entries, and bars of no entry.

Strangers: bars on disk of series that the universe does not name.

What a universe would change for a store: symbols that come, go, or are something else now.
"""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum

from ktrdr_pipelines.domain.instruments import Identity, Instrument
from ktrdr_pipelines.domain.timeframes import Timeframe
from ktrdr_pipelines.domain.universe.universe import Universe
from ktrdr_pipelines.errors import StoreError
from ktrdr_pipelines.store.bars.bar_store import BarStore


@dataclass(frozen=True, slots=True)
class Stranger:
    """One series that the universe does not name; 0 rows where its files cannot be read."""

    symbol: str
    timeframe: Timeframe
    rows: int


def strangers(store: BarStore, symbols: Collection[str]) -> Iterator[Stranger]:
    """Return the series on disk whose symbol is not among those of the universe."""
    for symbol, timeframe in store.series_on_disk():
        if symbol not in symbols:
            yield Stranger(symbol, timeframe, _rows(store, symbol, timeframe))


def _rows(store: BarStore, symbol: str, timeframe: Timeframe) -> int:
    try:
        return sum(row.rows for row in store.files(symbol, timeframe).values())
    except StoreError:
        return 0


_WAYS_OUT = (
    "Say again what it was; or take the old one out of the way with `ktrdr universe retire "
    "{symbol}` and add the new one; or give the new one another symbol"
)
_FREE = ("timeframes", "start", "backfill")
"""Fields that may change at any time: they say what is wanted, not what it is."""


class ChangeKind(StrEnum):
    """What becomes of a symbol or of one of its series."""

    ADDED = "added"
    REMOVED = "removed"
    CHANGED = "changed"
    REFUSED = "refused"


@dataclass(frozen=True, slots=True)
class Change:
    """One change: of which symbol, in words, and the way out where it is refused."""

    kind: ChangeKind
    symbol: str
    text: str
    hint: str = ""


def universe_changes(store: BarStore, universe: Universe, before: Universe | None) -> list[Change]:
    """Say what a universe changes, symbol by symbol.

    Args:
        store: whose files are looked at.
        universe: what is to count.
        before: what has counted until now, if anything did.
    """
    held = _held(store)
    known = dict(before.instruments) if before else {}
    changes: list[Change] = []
    for symbol, instrument in universe.instruments.items():
        changes += _of_symbol(instrument, known.get(symbol), held.get(symbol, {}))
    gone = [symbol for symbol in {**known, **held} if symbol not in universe.instruments]
    return changes + [_removed(symbol, held.get(symbol, {})) for symbol in gone]


def _held(store: BarStore) -> dict[str, dict[Timeframe, Identity]]:
    """Say what every symbol's files are."""
    held: dict[str, dict[Timeframe, Identity]] = {}
    for symbol, timeframe in store.series_on_disk():
        rows = store.files(symbol, timeframe).values()
        held.setdefault(symbol, {})[timeframe] = next(iter(rows)).identity
    return held


def _of_symbol(
    instrument: Instrument, before: Instrument | None, held: Mapping[Timeframe, Identity]
) -> list[Change]:
    symbol = instrument.symbol
    if refused := _foreign(instrument, before, held):
        hint = _WAYS_OUT.format(symbol=symbol)
        return [Change(ChangeKind.REFUSED, symbol, refused, hint)]
    if before is None:
        stored = f"; bars of {_joined(held)} are there" if held else ""
        text = f"will be kept as {_joined(instrument.timeframes)}{stored}"
        return [] if held else [Change(ChangeKind.ADDED, symbol, text)]
    if before != instrument:
        return [Change(ChangeKind.CHANGED, symbol, _difference(before, instrument))]
    return []


def _foreign(
    instrument: Instrument, before: Instrument | None, held: Mapping[Timeframe, Identity]
) -> str:
    """Say where the bars on disk are another thing than the instrument; empty where they fit."""
    for timeframe, identity in held.items():
        requested = {
            "what_to_show": (identity.what_to_show, instrument.what_to_show),
            "use_rth": (identity.use_rth, instrument.use_rth),
            "con_id": (identity.contract_id, instrument.contract_id or identity.contract_id),
        }
        for name, (is_held, is_wanted) in requested.items():
            if is_held != is_wanted:
                return f"bars of {timeframe} on disk have {name} {is_held}, it says {is_wanted}"
    if before is not None and held:
        other = [name for name in _differing(before, instrument) if name not in _FREE]
        if other:
            return f"there are bars of it, and {_difference(before, instrument, other)}"
    return ""


def _removed(symbol: str, held: Mapping[Timeframe, Identity]) -> Change:
    kept = f"its bars of {_joined(held)} stay and can be queried" if held else "it has no bars"
    hint = f"`ktrdr universe retire {symbol}` is for a symbol that shall be free" if held else ""
    return Change(ChangeKind.REMOVED, symbol, f"not in the universe; {kept}", hint)


def _differing(before: Instrument, after: Instrument) -> list[str]:
    names = before.__dataclass_fields__
    return [name for name in names if getattr(before, name) != getattr(after, name)]


def _difference(before: Instrument, after: Instrument, names: list[str] | None = None) -> str:
    parts = (
        f"{name} goes from {_shown(getattr(before, name))} to {_shown(getattr(after, name))}"
        for name in names or _differing(before, after)
    )
    return ", ".join(parts)


def _shown(value: object) -> str:
    return _joined(value) if isinstance(value, tuple) else str(value)


def _joined(values: Mapping[Timeframe, object] | tuple[object, ...]) -> str:
    return ", ".join(map(str, values))
