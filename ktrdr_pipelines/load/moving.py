"""Renaming and retiring symbols: who may be moved, and when.

Not here: the moving itself (``store.moves``), Dagster's partitions (``defs.instance``).
"""

from datetime import datetime

from ktrdr_pipelines.core.timeframes import Timeframe
from ktrdr_pipelines.errors import StoreError
from ktrdr_pipelines.load.claims import is_in_hand
from ktrdr_pipelines.store.layout import StoreLayout
from ktrdr_pipelines.store.ledger import open_ledger
from ktrdr_pipelines.store.move_journal import Move, MoveKind
from ktrdr_pipelines.store.moves import move_symbol, retired_name


def rename(layout: StoreLayout, symbol: str, new_symbol: str, now: datetime) -> Move:
    """Give a symbol another name, with its bars and all that is known of it.

    Raises: as ``store.moves.move_symbol``; StoreError also where a load is at work on it.
    """
    return _move(layout, Move(MoveKind.RENAME, symbol, new_symbol), now)


def retire(layout: StoreLayout, symbol: str, now: datetime) -> Move:
    """Take a symbol out of the universe; its bars go where no query sees them, and are kept.

    Raises: as ``rename``.
    """
    return _move(layout, Move(MoveKind.RETIRE, symbol, retired_name(layout, symbol)), now)


def _move(layout: StoreLayout, move: Move, now: datetime) -> Move:
    ledger = open_ledger(layout)
    for symbol in (move.symbol, move.target):
        for timeframe in Timeframe:
            if is_in_hand(layout, ledger, f"{symbol}|{timeframe}", now):
                raise StoreError(
                    f"cannot {move.kind} {move.symbol}",
                    came=f"a load is asking for {symbol} {timeframe}",
                    remedy="Wait for it, or stop it, and run this again",
                )
    move_symbol(layout, ledger, move)
    return move
