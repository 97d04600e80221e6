"""Instruments and series: what an entry of the universe stands for.

Not here: parsing the universe (``domain.universe.universe``), requesting contracts of a gateway
(``ib``).
"""

from dataclasses import dataclass
from datetime import date
from enum import StrEnum

from ktrdr_pipelines.domain.timeframes import Timeframe


class SecType(StrEnum):
    """Kinds of instruments, by IB's names."""

    STK = "STK"
    CASH = "CASH"
    FUT = "FUT"
    IND = "IND"
    CRYPTO = "CRYPTO"


class WhatToShow(StrEnum):
    """What a bar is made of, by IB's names."""

    TRADES = "TRADES"
    AGGTRADES = "AGGTRADES"
    MIDPOINT = "MIDPOINT"
    BID = "BID"
    ASK = "ASK"


class Backfill(StrEnum):
    """Who starts loads of history: the sensors, or the user."""

    AUTO = "auto"
    MANUAL = "manual"


class Origin(StrEnum):
    """Where bars come from; a store never mixes origins."""

    IB = "ib"
    SIMULATED = "simulated"
    IMPORT = "import"


@dataclass(frozen=True, slots=True)
class Instrument:
    """What one symbol of the universe stands for.

    ``symbol`` is the universe's key, ``ib_symbol`` the gateway's. ``calendar`` is a key of
    ``domain.calendars.registry``. ``start`` is the first session date that is wanted, ``end`` the
    first one at which it has ended (delisted, expired), None while it trades. Of a future,
    ``last_trade_date`` and the three fields after it distinguish one contract from another.
    ``has_ended`` says that it ended with its last held session: ``store.universe_file`` sets
    ``end`` accordingly.
    """

    symbol: str
    ib_symbol: str
    sec_type: SecType
    exchange: str
    currency: str
    what_to_show: WhatToShow
    use_rth: bool
    calendar: str
    timeframes: tuple[Timeframe, ...]
    start: date
    backfill: Backfill = Backfill.AUTO
    primary_exchange: str = ""
    contract_id: int | None = None
    end: date | None = None
    last_trade_date: date | None = None
    multiplier: str = ""
    local_symbol: str = ""
    trading_class: str = ""
    has_ended: bool = False

    def __str__(self) -> str:
        return self.symbol


@dataclass(frozen=True, slots=True)
class Series:
    """One instrument at one timeframe: the unit of storage, coverage and locking."""

    instrument: Instrument
    timeframe: Timeframe

    @property
    def symbol(self) -> str:
        """The universe's key."""
        return self.instrument.symbol

    def __str__(self) -> str:
        return f"{self.symbol} {self.timeframe}"


@dataclass(frozen=True, slots=True)
class Identity:
    """What a stored file holds, by its footer; bars of different identities are never merged."""

    symbol: str
    timeframe: Timeframe
    what_to_show: WhatToShow
    use_rth: bool
    contract_id: int
    origin: Origin

    def __str__(self) -> str:
        hours = "regular hours" if self.use_rth else "all hours"
        return (
            f"{self.symbol} {self.timeframe} {self.what_to_show} {hours}, contract id "
            f"{self.contract_id}, origin {self.origin}"
        )


def identity_of(series: Series, *, contract_id: int, origin: Origin) -> Identity:
    """Return the identity that files of a series must have."""
    return Identity(
        symbol=series.symbol,
        timeframe=series.timeframe,
        what_to_show=series.instrument.what_to_show,
        use_rth=series.instrument.use_rth,
        contract_id=contract_id,
        origin=origin,
    )
