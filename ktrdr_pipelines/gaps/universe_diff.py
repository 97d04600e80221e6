"""Compare a universe with a store: changed entries, and bars on disk without an entry."""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum

from ktrdr_pipelines.domain.instruments import HeldVenue, Identity, Instrument, conflict_of
from ktrdr_pipelines.domain.timeframes import Timeframe
from ktrdr_pipelines.domain.universe.universe import Universe
from ktrdr_pipelines.errors import StoreError
from ktrdr_pipelines.store.bars.bar_store import BarStore


@dataclass(frozen=True, slots=True)
class Stranger:
    """A series on disk that the universe does not name; 0 rows if its files cannot be read."""

    symbol: str
    timeframe: Timeframe
    rows: int


def strangers(store: BarStore, symbols: Collection[str]) -> Iterator[Stranger]:
    """Yield the series on disk whose symbol is not among those of the universe."""
    layout = store.layout
    for symbol in (one for one in layout.symbols() if one not in symbols):
        for timeframe in layout.timeframes_of(symbol):
            if layout.has_bar_files(symbol, timeframe):
                try:
                    files = store.files.of_symbol(symbol, timeframe)
                    rows = sum(row.rows for row in files.values())
                except StoreError:
                    rows = 0
                yield Stranger(symbol, timeframe, rows)


_WAYS_OUT = (
    "Restore the previous value; or run `ktrdr universe retire {symbol}` and add the new "
    "instrument; or give the new instrument another symbol"
)
_LOAD_DECIDES = (
    "A load asks the gateway by it, and is refused if that is another contract than the bars have"
)
_NAMES_CONTRACT = ("ib_symbol", "primary_exchange", "local_symbol", "trading_class", "multiplier")
"""Fields by which a contract is found, and which may change while it stays the same."""


class ChangeKind(StrEnum):
    """What a new universe changes about a symbol."""

    ADDED = "added"
    REMOVED = "removed"
    CHANGED = "changed"
    REFUSED = "refused"


@dataclass(frozen=True, slots=True)
class Change:
    """One change: its kind, its symbol, a description, and a hint, as for a refused one."""

    kind: ChangeKind
    symbol: str
    text: str
    hint: str = ""


def universe_changes(store: BarStore, universe: Universe, before: Universe | None) -> list[Change]:
    """Return what a universe changes, symbol by symbol.

    Args:
        store: the store whose files are compared.
        universe: the new universe.
        before: the universe until now, if there was one.
    """
    held: dict[str, dict[Timeframe, Identity]] = {}
    for symbol, timeframe in store.series_on_disk():
        rows = store.files.of_symbol(symbol, timeframe).values()
        held.setdefault(symbol, {})[timeframe] = next(iter(rows)).identity
    known = dict(before.instruments) if before else {}
    venues = {
        symbol: HeldVenue.of(one) for symbol, one in known.items()
    } | store.ledger.venues.all()
    changes: list[Change] = []
    for symbol, instrument in universe.instruments.items():
        changes += _of_symbol(
            instrument, known.get(symbol), held.get(symbol, {}), venues.get(symbol)
        )
    gone = [symbol for symbol in {**known, **held} if symbol not in universe.instruments]
    return changes + [_removed(symbol, held.get(symbol, {})) for symbol in gone]


def _of_symbol(
    instrument: Instrument,
    before: Instrument | None,
    held: Mapping[Timeframe, Identity],
    venue: HeldVenue | None,
) -> list[Change]:
    symbol = instrument.symbol
    if refused := _foreign(instrument, held, venue):
        hint = _WAYS_OUT.format(symbol=symbol)
        return [Change(ChangeKind.REFUSED, symbol, refused, hint)]
    if before is None:
        text = f"will be loaded as {_joined(instrument.timeframes)}"
        return [] if held else [Change(ChangeKind.ADDED, symbol, text)]
    if before != instrument:
        is_renamed = held and not set(_NAMES_CONTRACT).isdisjoint(_differing(before, instrument))
        hint = _LOAD_DECIDES if is_renamed else ""
        return [Change(ChangeKind.CHANGED, symbol, _difference(before, instrument), hint)]
    return []


def _foreign(
    instrument: Instrument, held: Mapping[Timeframe, Identity], venue: HeldVenue | None
) -> str:
    """Return why the bars on disk are of another instrument; empty where they are not."""
    for identity in held.values():
        if conflict := conflict_of(identity, instrument, instrument.contract_id):
            return conflict
    return venue.conflict_with(instrument) if venue is not None and held else ""


def _removed(symbol: str, held: Mapping[Timeframe, Identity]) -> Change:
    kept = f"its bars of {_joined(held)} stay and can be queried" if held else "it has no bars"
    hint = f"`ktrdr universe retire {symbol}` makes the symbol free for another one" if held else ""
    return Change(ChangeKind.REMOVED, symbol, f"not in the universe; {kept}", hint)


def _differing(before: Instrument, after: Instrument) -> list[str]:
    names = before.__dataclass_fields__
    return [name for name in names if getattr(before, name) != getattr(after, name)]


def _difference(before: Instrument, after: Instrument) -> str:
    parts = (
        f"{name} changes from {_shown(getattr(before, name))} to {_shown(getattr(after, name))}"
        for name in _differing(before, after)
    )
    return ", ".join(parts)


def _shown(value: object) -> str:
    return _joined(value) if isinstance(value, tuple) else str(value)


def _joined(values: Mapping[Timeframe, object] | tuple[object, ...]) -> str:
    return ", ".join(map(str, values))
