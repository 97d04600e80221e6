"""Instruments as the gateway's contracts, and which of its candidates an instrument means.

Not here: asking (``ib.source``).
"""

import re
from dataclasses import dataclass
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
"""Fields of the universe that tell candidates apart, the ones first that people know."""

_DATE: Final = re.compile(r"[0-9]{8}")
_TAGS: Final = 30
"""The field of message 10 that says how many pairs of texts come before the last ones."""
_EXPIRES: Final = 5
"""How many fields behind these pairs the real expiration date stands."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """One contract that the gateway knows under a description.

    ``last_trade_date`` is the date (``yyyymmdd``) of the last trade where it is traded, or empty;
    ``written_date`` the one that stands in the message, which may be of another zone; ``expires``
    the real expiration date.
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


def contract_for(instrument: Instrument, contract_id: int | None = None) -> Contract:
    """Describe an instrument to the gateway, by its id too where that is known.

    A future is asked for whether or not it has expired.
    """
    return Contract(
        conId=contract_id or 0,
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


def described(instrument: Instrument) -> str:
    """Tell an instrument in the words of the universe."""
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
        ValueError: too few fields, or an id that is none.
    """
    rest = list(fields)
    if server_version < 164:  # a version in front, and a size multiplier behind the tick
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
    """Return the date of the last trade in the zone of the exchange, or nothing where unclear.

    A gateway writes the moment in the zone of its login: ``20230624 04:00:00 Asia/Shanghai`` is
    2023-06-23 16:00 in New York. A plain date is that of the exchange.

    Source: https://github.com/erdewit/ib_insync/issues/605 and
    https://github.com/ib-api-reloaded/ib_async/issues/128 (grade L).
    """
    moment = None if ends is None else ends.earliest()
    zones = readings_of(zone)
    return f"{moment.astimezone(zones[0]):%Y%m%d}" if moment and zones else ""


def _expiration(fields: list[str]) -> str:
    """Return the real expiration date of message 10, or nothing where there is none."""
    try:
        text = fields[_TAGS + 2 * int(fields[_TAGS]) + _EXPIRES]
    except (IndexError, ValueError):
        return ""
    return text if _DATE.fullmatch(text) else ""


def chosen(instrument: Instrument, candidates: list[Candidate]) -> Candidate:
    """Give the one contract that an instrument means.

    Raises:
        ContractUnknownError: there is none.
        ContractAmbiguousError: there are several; the text lists them.
        BadAnswerError: what came is another kind of contract.
    """
    what = described(instrument)
    different = {candidate.contract_id: candidate for candidate in candidates}
    if not different:
        raise ContractUnknownError(
            what,
            reason="the gateway knows none",
            hint="Check symbol, sec_type, exchange and currency in the universe.",
        )
    fitting = [one for one in different.values() if _fits(instrument, one)]
    if len(fitting) > 1 and instrument.contract_id is None:
        # As written, the date of one may be that on which another one is traded last.
        ends = _last_trade_text(instrument)
        fitting = [one for one in fitting if one.last_trade_date == ends] or fitting
    if len(fitting) == 1 and (len(different) == 1 or _is_told_apart(instrument)):
        return fitting[0]
    if len(different) > 1:
        raise _ambiguous(what, fitting if len(fitting) > 1 else list(different.values()))
    [only] = different.values()
    raise BadAnswerError(what, reason=f"the gateway gave {only}", hint=_other_kind(only))


def _is_told_apart(instrument: Instrument) -> bool:
    """Say whether the universe says what tells one contract from all others of its symbol."""
    return instrument.contract_id is not None or instrument.last_trade_date is not None


def _fits(instrument: Instrument, only: Candidate) -> bool:
    """Say whether a contract is what was asked for; where the universe has its id, that decides.

    A date fits where it is that of the last trade, of the real expiration, or as it is written.
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


def _other_kind(only: Candidate) -> str:
    """Say how to name the contract that came, if it is the one that is meant."""
    is_dated = _DATE.fullmatch(only.last_trade_date)
    date = f', last_trade_date: "{only.last_trade_date}"' if is_dated else ""
    return (
        "If that is what you mean, say so in the universe: symbol, currency"
        f"{date} or con_id: {only.contract_id}."
    )


def _ambiguous(what: str, candidates: list[Candidate]) -> ContractAmbiguousError:
    shown = "; ".join(map(str, candidates[:_SHOWN]))
    more = f"; and {len(candidates) - _SHOWN} more" if len(candidates) > _SHOWN else ""
    return ContractAmbiguousError(
        what,
        reason=f"{len(candidates)} contracts fit: {shown}{more}",
        hint=_picking(candidates),
    )


def _picking(candidates: list[Candidate]) -> str:
    for field in _DISTINGUISHING:
        values = sorted({str(getattr(candidate, field)) for candidate in candidates})
        if len(values) > 1:
            choice = " or ".join(value or "''" for value in values[:_SHOWN])
            return f"Set {field} (or con_id) in the universe: {choice}"
    choice = " or ".join(str(candidate.contract_id) for candidate in candidates[:_SHOWN])
    return f"Set con_id in the universe: {choice}"
