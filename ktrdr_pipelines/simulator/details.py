"""How a contract is described: message 10.

Source: the decoders of ``ib_async`` 2.1.0 and ``ibapi`` 10 (grade S), which agree field by field
for server versions 157 to 178; the forms of its texts are those of whole and nearly whole messages
of live gateways (grade L: https://github.com/ib-api-reloaded/ib_async/issues/128 has a future).
"""

from dataclasses import dataclass
from datetime import UTC, datetime
from zoneinfo import ZoneInfo

from ktrdr_pipelines.simulator import wire
from ktrdr_pipelines.simulator.hours import DAY_S
from ktrdr_pipelines.simulator.instruments import Expiry, Instrument, SecType
from ktrdr_pipelines.simulator.variants import Variants

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
    """Both hours of a contract as details state them, and the name of their zone."""

    zone: str
    trading: str
    liquid: str


def contract_details(
    version: int, request_id: int, instrument: Instrument, *, last_trade: str, hours: TradingHours
) -> bytes:
    """Describe one contract, of which the last trade date and the hours are written already."""
    return wire.message(
        (
            *_leading_fields(version, request_id, instrument, last_trade),
            *_naming_fields(instrument),
            *(hours.zone, hours.trading, hours.liquid, "", "", 0),
            *_trailing_fields(version, instrument),
        )
    )


def contract_details_end(request_id: int) -> bytes:
    """End the list of fitting contracts."""
    return wire.message((52, 1, request_id))


def last_trade_text(instrument: Instrument, variants: Variants, now_s: int) -> str:
    """Write a future's last trade date with time and zone; nothing for what has none.

    The zone is that of the login, in which the moment may have another date than at the exchange:
    ``20260320 14:30:00 Europe/Zurich`` is 08:30 Chicago, ``20230624 04:00:00 Asia/Shanghai`` the
    close of New York on the 23rd. One far ahead may come as ``20251219`` alone (grade L:
    https://github.com/erdewit/ib_insync/issues/605). Without a login's zone it is the exchange's.
    """
    expiry = instrument.expiry
    if expiry is None:
        return ""
    plain_after = variants.plain_expiry_days
    if plain_after is not None and expiry.end_s - now_s > plain_after * DAY_S:
        return expiry.last_trade_date
    if not variants.zone:
        return f"{expiry.last_trade_date} {expiry.last_trade_time} {instrument.zone}"
    return _in_zone(expiry, variants.zone)


def _in_zone(expiry: Expiry, zone: str) -> str:
    local = datetime.fromtimestamp(expiry.end_s, UTC).astimezone(ZoneInfo(zone))
    return f"{local:%Y%m%d %H:%M:%S} {zone}"


def _leading_fields(
    version: int, request_id: int, instrument: Instrument, last_trade: str
) -> tuple[wire.Field, ...]:
    is_old = version < _SIZE_INCREMENT_FROM
    head = (10, 8, request_id) if is_old else (10, request_id)
    kind = (instrument.symbol, instrument.sec_type.value, last_trade, 0, "")
    names = (instrument.exchange, instrument.currency, instrument.local_symbol)
    last = (instrument.trading_class, instrument.trading_class, instrument.con_id)
    return (*head, *kind, *names, *last, instrument.min_tick, *((1,) if is_old else ()))


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
