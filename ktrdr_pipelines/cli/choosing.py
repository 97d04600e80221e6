"""Which series a command is about: names from the command line, found in the universe.

Not here: dates (``cli.dates``), what is done with the series.
"""

from typing import TYPE_CHECKING, Annotated

import typer

from ktrdr_pipelines.errors import UsageError

if TYPE_CHECKING:
    from ktrdr_pipelines.core.instruments import Series
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

    names = list(universe.instruments) if symbols is None else split_names("symbol", symbols)
    chosen = [universe.instrument(name) for name in names]
    if timeframes is not None:
        kinds = [timeframe_named(text) for text in split_names("timeframe", timeframes)]
        return [Series(instrument, kind) for instrument in chosen for kind in kinds]
    listed = [Series(one, kind) for one in chosen for kind in one.timeframes]
    on_disk = (
        Series(universe.instruments[symbol], kind)
        for symbol, kind in store.series_on_disk()
        if symbol in names
    )
    return list(dict.fromkeys((*listed, *on_disk)))


def split_names(what: str, text: str) -> list[str]:
    """Split a list at its commas; each name counts once."""
    names = [name.strip() for name in text.split(",")]
    if not all(names):
        raise UsageError(
            f"{what}s {text!r}", came=f"a {what} is empty", remedy="Separate them by single commas"
        )
    return list(dict.fromkeys(names))


def timeframe_named(text: str) -> "Timeframe":
    """Give the timeframe of a name."""
    from ktrdr_pipelines.core.timeframes import Timeframe

    if text not in list(Timeframe):
        allowed = f"Allowed are {', '.join(Timeframe)}"
        raise UsageError(f"timeframe {text!r}", came="no such timeframe", remedy=allowed)
    return Timeframe(text)
