"""Restoring retired symbols: which bars, under which symbol, and with which entry.

Not here: the steps of the move (``store.maintenance.rename``).
"""

import json
from collections.abc import Iterable, Mapping
from datetime import datetime
from pathlib import Path

from ktrdr_pipelines.domain.instruments import Identity, conflict_of
from ktrdr_pipelines.domain.universe.editing import (
    add_entry,
    alone,
    entry_text,
    rename_symbol,
    set_fields,
)
from ktrdr_pipelines.domain.universe.universe import parse_universe
from ktrdr_pipelines.errors import (
    CorruptFileError,
    ForeignIdentityError,
    UniverseError,
    UnknownSymbolError,
)
from ktrdr_pipelines.store.bars.bar_file import read_file
from ktrdr_pipelines.store.files import disk_errors
from ktrdr_pipelines.store.layout import StoreLayout, store_origin
from ktrdr_pipelines.store.ledger.ledger import open_ledger
from ktrdr_pipelines.store.maintenance.rename import ENTRY, begin_move, retired_symbol
from ktrdr_pipelines.store.maintenance.rename_journal import Move, MoveKind
from ktrdr_pipelines.store.universe_file import load_universe


def restore(
    layout: StoreLayout, symbol: str, now: datetime, *, new_symbol: str | None = None
) -> Move:
    """Restore a retired symbol: its entry in the universe, its bars and its ledger rows.

    The entry is as it was. If it was not kept, as by earlier versions, it is made from what the
    files say of themselves, or the universe has to name the symbol already.

    Args:
        layout: the store.
        symbol: the symbol, of which the bars that were retired last are restored, or a name among
            the retired ones, such as ``AAPL@1``.
        now: the time, by which loads that request bars of it are found.
        new_symbol: the symbol that it gets in place of its own.

    Raises:
        UnknownSymbolError: no such symbol was retired.
        ForeignIdentityError: the symbol is another instrument's by now; nothing has changed.
        UniverseError: the entry does not fit into the universe; nothing has changed.
        StoreError: as ``rename.move_symbol``.
    """
    name = retired_name_of(layout, symbol)
    target = new_symbol or retired_symbol(name)
    held = _identities(layout.retired / name)
    universe = load_universe(layout.universe)
    if target in universe.instruments:
        instrument = universe.instrument(target)
        pinned = open_ledger(layout).contracts.of(target, store_origin(layout))
        contract_id = instrument.contract_id or pinned
        _refuse_conflicts([conflict_of(one, instrument, contract_id) for one in held], name, target)
        entry = ""
    else:
        entry = _entry_for(layout, name, target, held)
    return begin_move(layout, Move(MoveKind.RESTORE, name, target, entry), now)


def retired_name_of(layout: StoreLayout, symbol: str) -> str:
    """Return the name among the retired ones of a symbol, that of the newest if there are several.

    Raises:
        UnknownSymbolError: no such symbol was retired.
    """
    with disk_errors(layout.retired):
        names = [one.name for one in layout.retired.glob("*@*")] if layout.retired.exists() else []
    if symbol in names:
        return symbol
    own = [one for one in names if retired_symbol(one) == symbol]
    if own:
        return max(own, key=lambda one: (len(one), one))
    known = f"Retired are {', '.join(sorted(names))}" if names else "No symbol was retired"
    raise UnknownSymbolError(
        f"cannot restore {symbol}", reason=f"nothing in {layout.retired} is of it", hint=known
    )


def _identities(folder: Path) -> list[Identity]:
    """Return the identity of each timeframe of retired bars."""
    found: dict[str, Identity] = {}
    for path in sorted(folder.rglob("*.parquet")):
        if path.parent.name not in found:
            found[path.parent.name] = read_file(path)[0].identity
    return list(found.values())


def _entry_for(layout: StoreLayout, name: str, target: str, held: list[Identity]) -> str:
    """Return the entry that a restored symbol gets, as one line of YAML."""
    with disk_errors(layout.universe):
        text = layout.universe.read_bytes().decode("utf-8-sig")
    file, symbol = str(layout.universe), retired_symbol(name)
    entry = _kept_entry(layout.retired / name / ENTRY, held)
    contract_id = held[0].contract_id if held else None
    try:
        scratch = alone(text, file, symbol, entry)
        if target != symbol:
            scratch = rename_symbol(scratch, file, symbol, target, contract_id=contract_id)
        scratch = set_fields(scratch, file, target, _hours_and_bars(scratch, file, target, held))
        entry = entry_text(scratch, file, target)
        add_entry(text, file, target, entry)
    except UniverseError as error:
        raise UniverseError(
            f"cannot restore {name} as {target}",
            reason=f"its entry does not fit into {file}: {error}",
            hint=f"Add {target} to the universe, as the instrument that it was, and run this again",
        ) from error
    instrument = parse_universe(scratch, file).instrument(target)
    _refuse_conflicts(
        [conflict_of(one, instrument, instrument.contract_id) for one in held], name, target
    )
    return entry


def _kept_entry(path: Path, held: list[Identity]) -> str:
    """Return the entry that was kept beside retired bars, else one made from their identity."""
    if not path.exists():
        timeframes = ", ".join(one.timeframe for one in held)
        fields = f"con_id: {held[0].contract_id}, timeframes: [{timeframes}]" if held else ""
        return f"{{{fields}}}"
    with disk_errors(path):
        content = path.read_bytes()
    try:
        return str(json.loads(content)["entry"])
    except (ValueError, KeyError, TypeError) as error:
        raise CorruptFileError(
            f"cannot read {path}",
            reason=f"it is no entry of a universe: {content[:80]!r}",
            hint="Remove it; the entry is then made from the bars",
        ) from error


def _hours_and_bars(text: str, file: str, symbol: str, held: list[Identity]) -> Mapping[str, str]:
    """Return the fields that the held bars have otherwise than an entry, by today's defaults."""
    if not held:
        return {}
    made, bars = parse_universe(text, file).instrument(symbol), held[0]
    fields = {}
    if made.use_rth != bars.use_rth:
        fields["use_rth"] = str(bars.use_rth).lower()
    if made.what_to_show != bars.what_to_show:
        fields["what_to_show"] = str(bars.what_to_show)
    return fields


def _refuse_conflicts(conflicts: Iterable[str], name: str, target: str) -> None:
    for conflict in filter(None, conflicts):
        raise ForeignIdentityError(
            f"restoring {name} as {target}",
            reason=f"{target} is another instrument by now: {conflict}",
            hint=f"Restore it as another symbol: ktrdr universe restore {name} --as NEW",
        )
