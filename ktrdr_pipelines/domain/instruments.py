"""Instruments and series: what an entry of the universe stands for.

Not here: parsing the universe (``domain.universe.universe``), requesting contracts of a gateway
(``ib``).
"""

from dataclasses import dataclass
from datetime import date
from enum import StrEnum
from typing import Final

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


SYMBOL_PATTERN: Final = r"[A-Za-z0-9_][A-Za-z0-9._-]{0,19}"
"""What a symbol of the universe looks like, which is also part of the names of files."""


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


@dataclass(frozen=True, slots=True)
class HeldVenue:
    """Where and as what held bars were requested, beyond their contract id."""

    sec_type: SecType
    exchange: str
    currency: str

    @classmethod
    def of(cls, instrument: Instrument) -> "HeldVenue":
        """Return the venue of an instrument."""
        return cls(instrument.sec_type, instrument.exchange, instrument.currency)

    def conflict_with(self, instrument: Instrument) -> str:
        """Return why an instrument has other bars than this venue's; empty if it has not.

        A stock has other trades at each exchange. Other contracts are listed at one exchange only,
        so that another one has another id, or is the same exchange under another name.
        """
        wanted = HeldVenue.of(instrument)
        names = ["sec_type", "currency", *(["exchange"] if wanted.sec_type is SecType.STK else [])]
        for name in names:
            is_held, is_wanted = getattr(self, name), getattr(wanted, name)
            if is_held != is_wanted:
                return f"its bars on disk have {name} {is_held}, not {is_wanted}"
        return ""


def conflict_of(held: Identity, instrument: Instrument, contract_id: int | None) -> str:
    """Return why the bars of an instrument are other ones than held bars; empty if they are not.

    Loads and checks of the universe decide by this alone. What a gateway calls a contract, and
    where it is listed, may change; its id does not.

    Args:
        held: the identity of the held bars, of any timeframe.
        instrument: as the universe has it.
        contract_id: that of the instrument; None where it is not known.
    """
    wanted = {
        "what_to_show": (held.what_to_show, instrument.what_to_show),
        "use_rth": (held.use_rth, instrument.use_rth),
        "con_id": (held.contract_id, contract_id or held.contract_id),
    }
    for name, (is_held, is_wanted) in wanted.items():
        if is_held != is_wanted:
            return f"bars of {held.timeframe} on disk have {name} {is_held}, not {is_wanted}"
    return ""


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
