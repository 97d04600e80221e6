"""Whose bars may come to be: a symbol's first file needs a universe that names the symbol.

Not here: moving symbols (``store.moves``), what an entry means (``universe``).
"""

from ktrdr_pipelines.errors import StoreError, UniverseError
from ktrdr_pipelines.store.layout import StoreLayout
from ktrdr_pipelines.universe import load_universe


def refuse_unnamed(layout: StoreLayout, symbol: str) -> None:
    """Refuse the first bars of a symbol that has left the universe; a series' lock must be held.

    A load knows its symbols from when it began: without this one that went on while its symbol
    was renamed or retired would put bars under the name that was given up. Moves hold the locks
    of all series until the universe is written, and take the old folder away, so that only a save
    that finds no folder has to look. A universe that is missing or malformed says nothing.

    Raises:
        StoreError: there is no bar of the symbol, and the universe does not name it.
    """
    if layout.symbol_folder(symbol).exists() or not layout.universe.exists():
        return
    try:
        named = load_universe(layout.universe).instruments
    except UniverseError:
        return
    if symbol not in named:
        raise StoreError(
            f"cannot save the first bars of {symbol}",
            came=f"{layout.universe} does not name it (any more)",
            remedy="If it was renamed, load it under its new name; else add it there again",
        )
