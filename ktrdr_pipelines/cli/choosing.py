"""Which series a command is about: names from the command line, found in the universe.

Not here: dates (``cli.dates``), what is done with the series.
"""

from typing import TYPE_CHECKING, Annotated

import typer

from ktrdr_pipelines.errors import UsageError

if TYPE_CHECKING:
    from ktrdr_pipelines.core.instruments import Instrument, Series
    from ktrdr_pipelines.core.timeframes import Timeframe
    from ktrdr_pipelines.store.parquet import BarStore
    from ktrdr_pipelines.universe import Universe

SomeSymbols = Annotated[
    str | None,
    typer.Argument(
        metavar="[SYMBOL[,SYMBOL...]]",
        help="Symbols of the universe.",
        show_default="all of them",
    ),
]
SomeTimeframes = Annotated[
    str | None,
    typer.Argument(
        metavar="[TIMEFRAME[,...]]",
        help="Some of 1m 5m 15m 30m 1h 4h 1d 1w.",
        show_default="those of each symbol, and those on disk",
    ),
]


def chosen_series(
    universe: "Universe", store: "BarStore", symbols: str | None, timeframes: str | None
) -> "list[Series]":
    """Give the named series, each once; those that are listed or on disk where none is named.

    Raises:
        UnknownSymbolError, UsageError: a name means nothing.
    """
    from ktrdr_pipelines.core.instruments import Series

    chosen = instruments_of(universe, symbols)
    if timeframes is not None:
        kinds = timeframes_named(timeframes)
        return [Series(instrument, kind) for instrument in chosen for kind in kinds]
    names = {instrument.symbol for instrument in chosen}
    listed = [Series(one, kind) for one in chosen for kind in one.timeframes]
    on_disk = (
        Series(universe.instruments[symbol], kind)
        for symbol, kind in store.series_on_disk()
        if symbol in names
    )
    return list(dict.fromkeys((*listed, *on_disk)))


def instruments_of(universe: "Universe", symbols: str | None) -> "list[Instrument]":
    """Give the named instruments, each once; all of them where none is named.

    Raises:
        UsageError: a name is empty, or not in the universe.
    """
    if symbols is None:
        return list(universe.instruments.values())
    return [universe.instrument(name) for name in _names("symbol", symbols)]


def timeframes_named(text: str) -> "list[Timeframe]":
    """Give the timeframes of a list, each once.

    Raises:
        UsageError: a name is empty, or none of a timeframe.
    """
    return [_timeframe(name) for name in _names("timeframe", text)]


def _names(what: str, text: str) -> list[str]:
    """Split a list at its commas; each name counts once."""
    names = [name.strip() for name in text.split(",")]
    if not all(names):
        raise UsageError(
            f"{what}s {text!r}", came=f"a {what} is empty", remedy="Separate them by single commas"
        )
    return list(dict.fromkeys(names))


def _timeframe(text: str) -> "Timeframe":
    from ktrdr_pipelines.core.timeframes import Timeframe

    if text not in list(Timeframe):
        allowed = f"Allowed are {', '.join(Timeframe)}"
        raise UsageError(f"timeframe {text!r}", came="no such timeframe", remedy=allowed)
    return Timeframe(text)
