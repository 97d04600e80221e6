"""Instruments as the gateway's contracts, and which of its candidates an instrument means.

Not here: sending requests (``ib.source``).
"""

import re
from dataclasses import dataclass, replace
from typing import Final

from ib_async.contract import Contract

from ktrdr_pipelines.domain.instruments import Instrument, SecType
from ktrdr_pipelines.errors import BadAnswerError, ContractAmbiguousError, ContractUnknownError
from ktrdr_pipelines.ib.protocol.times import WrittenMoment, readings_of, written_moment

_SHOWN = 5
_DISTINGUISHING = (
    *("currency", "primary_exchange", "exchange"),
    *("last_trade_date", "trading_class", "multiplier", "local_symbol"),
)
"""Fields of the universe that distinguish candidates, the best known ones first."""

_DATE: Final = re.compile(r"[0-9]{8}")
_TAGS: Final = 30
"""The field of message 10 with the number of pairs of texts before the last fields."""
_EXPIRES: Final = 5
"""How many fields after these pairs the real expiration date is."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """One contract that the gateway knows for a description.

    ``last_trade_date`` is the date (``yyyymmdd``) of the last trade at its exchange, or empty;
    ``written_date`` the date in the message, which may be of another zone; ``expires`` the real
    expiration date.
    """

    contract_id: int
    symbol: str
    sec_type: str
    exchange: str
    primary_exchange: str
    currency: str
    name: str
    last_trade_date: str = ""
    written_date: str = ""
    expires: str = ""
    unknown_zone: str = ""
    multiplier: str = ""
    local_symbol: str = ""
    trading_class: str = ""
    zone: str = ""
    trading_hours: str = ""
    liquid_hours: str = ""

    def __str__(self) -> str:
        where = f"{self.exchange}/{self.primary_exchange}".rstrip("/")
        ends = f" {self.last_trade_date} {self.local_symbol}" if self.last_trade_date else ""
        return (
            f"{self.symbol} {self.sec_type} {where} {self.currency}{ends} "
            f"({self.name or 'no name'}, id {self.contract_id})"
        )


def contract_for(instrument: Instrument, known: Candidate | None = None) -> Contract:
    """Return the gateway's description of an instrument.

    A future is requested whether or not it has expired.

    Args:
        instrument: as the universe has it.
        known: its contract as the gateway describes it. Its id decides then, and of the fields
            that the universe has it contributes those that change: a company gets another symbol,
            a stock moves to another exchange, and the contract stays the same.
    """
    if known is not None:
        return _known_contract(instrument, known)
    return Contract(
        symbol=instrument.ib_symbol,
        secType=instrument.sec_type.value,
        exchange=instrument.exchange,
        primaryExchange=instrument.primary_exchange,
        currency=instrument.currency,
        lastTradeDateOrContractMonth=_last_trade_text(instrument),
        multiplier=instrument.multiplier,
        localSymbol=instrument.local_symbol,
        tradingClass=instrument.trading_class,
        includeExpired=instrument.sec_type is SecType.FUT,
    )


def contract_by_id(instrument: Instrument, contract_id: int) -> Contract:
    """Return the gateway's description of a contract by its id alone, at the exchange wanted.

    The other fields could contradict the id: they are what the contract was named once.
    """
    return Contract(
        conId=contract_id,
        secType=instrument.sec_type.value,
        exchange=instrument.exchange,
        includeExpired=instrument.sec_type is SecType.FUT,
    )


def _known_contract(instrument: Instrument, known: Candidate) -> Contract:
    return Contract(
        conId=known.contract_id,
        symbol=known.symbol or instrument.ib_symbol,
        secType=instrument.sec_type.value,
        exchange=instrument.exchange,
        primaryExchange=instrument.primary_exchange and known.primary_exchange,
        currency=known.currency or instrument.currency,
        lastTradeDateOrContractMonth=_last_trade_text(instrument),
        multiplier=instrument.multiplier,
        localSymbol=instrument.local_symbol and known.local_symbol,
        tradingClass=instrument.trading_class and known.trading_class,
        includeExpired=instrument.sec_type is SecType.FUT,
    )


def is_as_described(instrument: Instrument, contract: Candidate) -> bool:
    """Return whether a contract has the symbol and the currency that the universe has."""
    return _fits(replace(instrument, contract_id=None), contract)


def described(instrument: Instrument) -> str:
    """Return the description of an instrument in the words of the universe, for messages."""
    where = f"{instrument.exchange}/{instrument.primary_exchange}".rstrip("/")
    said = (
        _last_trade_text(instrument),
        instrument.local_symbol,
        instrument.trading_class,
        f"x{instrument.multiplier}" if instrument.multiplier else "",
        f"id {instrument.contract_id}" if instrument.contract_id else "",
    )
    more = "".join(f" {one}" for one in said if one)
    return (
        f"contract of {instrument.symbol} ({instrument.ib_symbol} {instrument.sec_type} "
        f"{where} {instrument.currency}{more})"
    )


def _last_trade_text(instrument: Instrument) -> str:
    day = instrument.last_trade_date
    return "" if day is None else f"{day:%Y%m%d}"


def candidate_of(fields: list[str], server_version: int) -> Candidate:
    """Read message 10.

    Raises:
        ValueError: too few fields, or an invalid contract id.
    """
    rest = list(fields)
    if server_version < 164:  # a version at the start, and a size multiplier after the tick size
        del rest[15], rest[1]
    if len(rest) < 21:
        raise ValueError(f"{len(rest)} fields in a contract's details")
    if (contract_id := int(rest[12])) <= 0:
        raise ValueError(f"contract id {contract_id}")
    zone, trading_hours, liquid_hours = (*rest[25:28], "", "", "")[:3]
    ends = written_moment(rest[4])
    expires = _expiration(rest)
    return Candidate(
        contract_id=contract_id,
        symbol=rest[2],
        sec_type=rest[3],
        exchange=rest[7],
        primary_exchange=rest[20],
        currency=rest[8],
        name=rest[19],
        last_trade_date=_traded_last(ends, zone) or expires or rest[4][:8],
        written_date=rest[4][:8],
        expires=expires,
        unknown_zone=ends.zone if ends is not None and not ends.is_known else "",
        multiplier=rest[14],
        local_symbol=rest[9],
        trading_class=rest[11],
        zone=zone,
        trading_hours=trading_hours,
        liquid_hours=liquid_hours,
    )


def _traded_last(ends: WrittenMoment | None, zone: str) -> str:
    """Return the date of the last trade in the zone of the exchange; empty if unclear.

    A gateway writes the time in the zone of its login: ``20230624 04:00:00 Asia/Shanghai`` is
    2023-06-23 16:00 in New York. A plain date is that of the exchange.

    Source: https://github.com/erdewit/ib_insync/issues/605 and
    https://github.com/ib-api-reloaded/ib_async/issues/128 (grade L).
    """
    moment = None if ends is None else ends.earliest()
    zones = readings_of(zone)
    return f"{moment.astimezone(zones[0]):%Y%m%d}" if moment and zones else ""


def _expiration(fields: list[str]) -> str:
    """Return the real expiration date of message 10; empty if there is none."""
    try:
        text = fields[_TAGS + 2 * int(fields[_TAGS]) + _EXPIRES]
    except (IndexError, ValueError):
        return ""
    return text if _DATE.fullmatch(text) else ""


def chosen(instrument: Instrument, candidates: list[Candidate]) -> Candidate:
    """Return the one contract that an instrument means.

    Raises:
        ContractUnknownError: there is none.
        ContractAmbiguousError: there are several; the text lists them.
        BadAnswerError: the only candidate does not fit the instrument.
    """
    what = described(instrument)
    different = {candidate.contract_id: candidate for candidate in candidates}
    if not different:
        raise ContractUnknownError(
            what,
            reason="the gateway knows no such contract",
            hint="Check symbol, sec_type, exchange and currency in the universe.",
        )
    fitting = [one for one in different.values() if _fits(instrument, one)]
    if len(fitting) > 1 and instrument.contract_id is None:
        # The written date of one may be the date on which another one is traded last.
        ends = _last_trade_text(instrument)
        fitting = [one for one in fitting if one.last_trade_date == ends] or fitting
    # An id or a date in the universe distinguishes one contract from all others of its symbol.
    is_distinguished = instrument.contract_id is not None or instrument.last_trade_date is not None
    if len(fitting) == 1 and (len(different) == 1 or is_distinguished):
        return fitting[0]
    if len(different) > 1:
        raise _ambiguous(what, fitting if len(fitting) > 1 else list(different.values()))
    [only] = different.values()
    is_dated = _DATE.fullmatch(only.last_trade_date)
    date = f', last_trade_date: "{only.last_trade_date}"' if is_dated else ""
    raise BadAnswerError(
        what,
        reason=f"the gateway returned {only}",
        hint="If that is the intended contract, set it in the universe: symbol, currency"
        f"{date} or con_id: {only.contract_id}.",
    )


def _fits(instrument: Instrument, only: Candidate) -> bool:
    """Return whether a contract is the requested one; an id in the universe decides alone.

    A date fits if it is that of the last trade, of the real expiration, or the written one.
    """
    if only.sec_type != instrument.sec_type:
        return False
    if instrument.contract_id is not None:
        return only.contract_id == instrument.contract_id
    ends = _last_trade_text(instrument)
    return (
        only.symbol.casefold() == instrument.ib_symbol.casefold()
        and only.currency == instrument.currency
        and (not ends or ends in {only.last_trade_date, only.expires, only.written_date})
    )


def _ambiguous(what: str, candidates: list[Candidate]) -> ContractAmbiguousError:
    shown = "; ".join(map(str, candidates[:_SHOWN]))
    more = f"; and {len(candidates) - _SHOWN} more" if len(candidates) > _SHOWN else ""
    return ContractAmbiguousError(
        what,
        reason=f"{len(candidates)} contracts fit: {shown}{more}",
        hint=_distinguishing_hint(candidates),
    )


def _distinguishing_hint(candidates: list[Candidate]) -> str:
    for field in _DISTINGUISHING:
        values = sorted({str(getattr(candidate, field)) for candidate in candidates})
        if len(values) > 1:
            choice = " or ".join(value or "''" for value in values[:_SHOWN])
            return f"Set {field} (or con_id) in the universe: {choice}"
    choice = " or ".join(str(candidate.contract_id) for candidate in candidates[:_SHOWN])
    return f"Set con_id in the universe: {choice}"
