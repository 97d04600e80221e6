"""How a contract is described: message 10.

Source: the decoders of ``ib_async`` 2.1.0 and ``ibapi`` 10 (grade S), which agree field by field
for server versions 157 to 178.
"""

from dataclasses import dataclass

from ktrdr_pipelines.simulator import wire
from ktrdr_pipelines.simulator.instruments import Instrument, SecType

_SIZE_INCREMENT_FROM = 164
_SUGGESTED_INCREMENT_ONLY = 163
_LOT = 100

_SIZES: dict[SecType, tuple[float | int, ...]] = {
    SecType.STOCK: (0.0001, 0.0001, _LOT),
    SecType.CRYPTO: (0.00000001, 0.00000001, 0.00000001),
}
_WHOLE_SIZES = (1, 1, 1)


@dataclass(frozen=True, slots=True)
class TradingHours:
    """Both hours of a contract as details state them."""

    trading: str
    liquid: str


def contract_details(
    version: int, request_id: int, instrument: Instrument, hours: TradingHours
) -> bytes:
    """Describe one contract."""
    return wire.message(
        (
            *_leading_fields(version, request_id, instrument),
            *_naming_fields(instrument),
            *(instrument.zone, hours.trading, hours.liquid, "", 0, 0),
            *_trailing_fields(version, instrument),
        )
    )


def contract_details_end(request_id: int) -> bytes:
    """End the list of fitting contracts."""
    return wire.message((52, 1, request_id))


def _leading_fields(
    version: int, request_id: int, instrument: Instrument
) -> tuple[wire.Field, ...]:
    is_old = version < _SIZE_INCREMENT_FROM
    head = (10, 8, request_id) if is_old else (10, request_id)
    kind = (instrument.symbol, instrument.sec_type.value, _last_trade(instrument), 0.0, "")
    names = (instrument.exchange, instrument.currency, instrument.local_symbol)
    last = (instrument.trading_class, instrument.trading_class, instrument.con_id)
    return (*head, *kind, *names, *last, instrument.min_tick, *((1,) if is_old else ()))


def _last_trade(instrument: Instrument) -> str:
    """Write a future's last trade date, time and zone, which clients take apart."""
    if instrument.expiry is None:
        return ""
    expiry = instrument.expiry
    return f"{expiry.last_trade_date} {expiry.last_trade_time} {instrument.zone}"


def _naming_fields(instrument: Instrument) -> tuple[wire.Field, ...]:
    exchanges = ",".join(instrument.exchanges)
    name = instrument.name.encode("unicode-escape").decode()
    month = "" if instrument.expiry is None else instrument.expiry.contract_month
    return (
        *(instrument.multiplier, "LMT,MKT", exchanges, 1, 0, name),
        *(instrument.primary_exchange, month, "", "", ""),
    )


def _trailing_fields(version: int, instrument: Instrument) -> tuple[wire.Field, ...]:
    stock_type = "COMMON" if instrument.sec_type is SecType.STOCK else ""
    under = (instrument.symbol, "IND") if instrument.multiplier else ("", "")
    ends = "" if instrument.expiry is None else instrument.expiry.last_trade_date
    fields: tuple[wire.Field, ...] = (1, *under, "26", ends, stock_type)
    sizes = _SIZES.get(instrument.sec_type, _WHOLE_SIZES)
    if version >= _SIZE_INCREMENT_FROM:
        return (*fields, *sizes)
    return (*fields, sizes[-1]) if version == _SUGGESTED_INCREMENT_ONLY else fields
