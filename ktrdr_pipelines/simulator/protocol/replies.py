"""The messages that the gateway sends: one function a message, each returning framed bytes.

Source: the decoders of ``ib_async`` 2.1.0 and ``ibapi`` 10 (grade S), which agree field by field
for server versions 157 to 178. The fields depend on the negotiated server version where a function
takes one. The texts of contract details have the form of those of live gateways (grade L:
https://github.com/ib-api-reloaded/ib_async/issues/128 has a future).

Trading hours start today, as in ``20260105:0930-20260105:1600;20260106:CLOSED`` (grade L). A day is
CLOSED if no session of the list touches it: 25 December 2025 is closed in the liquid hours of MES
but not in its trading hours, as a session begins on its evening; likewise a Sunday of FX
(https://github.com/ib-api-reloaded/ib_async/issues/128 and the stubs of nautilus_trader). The hours
are in the zone that they name, which is the exchange's even if the login has another.

Not here: the messages that clients send (``messages``), and the texts of refusals
(``requests.refusals``).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import numpy as np

from ktrdr_pipelines.simulator.market.hours import DAY_S, Hours
from ktrdr_pipelines.simulator.market.market import Market
from ktrdr_pipelines.simulator.market.simulated_instruments import (
    SecurityType,
    SimulatedInstrument,
)
from ktrdr_pipelines.simulator.protocol import framing
from ktrdr_pipelines.simulator.protocol.time_texts import date_text, local_text, offset_s
from ktrdr_pipelines.simulator.requests.durations import Window
from ktrdr_pipelines.simulator.variants import HoursZone, Variants, ZoneNames

_SIZE_INCREMENT_FROM = 164
_SUGGESTED_INCREMENT_ONLY = 163
_LOT = 100

_SIZES: dict[SecurityType, tuple[float | int, ...]] = {
    SecurityType.STOCK: (0.0001, 0.0001, _LOT),
    SecurityType.CRYPTO: (0.00000001, 0.00000001, 0.00000001),
}
_WHOLE_SIZES = (1, 1, 1)


@dataclass(frozen=True, slots=True)
class TradingHours:
    """The trading and liquid hours of a contract as details state them, and their zone's name."""

    zone: str
    trading: str
    liquid: str


def contract_details(
    version: int,
    request_id: int,
    instrument: SimulatedInstrument,
    *,
    last_trade: str,
    hours: TradingHours,
) -> bytes:
    """Return message 10, the details of a contract; ``last_trade`` and ``hours`` are texts."""
    exchanges = ",".join(instrument.exchanges)
    name = instrument.name.encode("unicode-escape").decode()
    month = "" if instrument.expiry is None else instrument.expiry.contract_month
    return framing.message(
        (
            *_leading_fields(version, request_id, instrument, last_trade),
            *(instrument.multiplier, "LMT,MKT", exchanges, 1, 0, name),
            *(instrument.primary_exchange, month, "", "", ""),
            *(hours.zone, hours.trading, hours.liquid, "", "", 0),
            *_trailing_fields(version, instrument),
        )
    )


def contract_details_end(request_id: int) -> bytes:
    """Return the end of the list of matching contracts."""
    return framing.message((52, 1, request_id))


def last_trade_text(instrument: SimulatedInstrument, variants: Variants, now_s: int) -> str:
    """Return a future's last trade date with time and zone; empty without an expiry.

    The zone is that of the login, where the moment may have another date than at the exchange:
    ``20260320 14:30:00 Europe/Zurich`` is 08:30 Chicago, ``20230624 04:00:00 Asia/Shanghai`` the
    close of New York on the 23rd. A date far ahead may have no time: ``20251219`` (grade L:
    https://github.com/erdewit/ib_insync/issues/605). If the login has no zone, the exchange's is
    used.
    """
    expiry = instrument.expiry
    if expiry is None:
        return ""
    plain_after = variants.plain_expiry_days
    if plain_after is not None and expiry.end_s - now_s > plain_after * DAY_S:
        return expiry.last_trade_date
    if not variants.zone:
        return f"{expiry.last_trade_date} {expiry.last_trade_time} {instrument.zone}"
    local = datetime.fromtimestamp(expiry.end_s, UTC).astimezone(ZoneInfo(variants.zone))
    return f"{local:%Y%m%d %H:%M:%S} {variants.zone}"


def _leading_fields(
    version: int, request_id: int, instrument: SimulatedInstrument, last_trade: str
) -> tuple[framing.Field, ...]:
    is_old = version < _SIZE_INCREMENT_FROM
    head = (10, 8, request_id) if is_old else (10, request_id)
    kind = (instrument.symbol, instrument.sec_type.value, last_trade, 0, "")
    names = (instrument.exchange, instrument.currency, instrument.local_symbol)
    last = (instrument.trading_class, instrument.trading_class, instrument.con_id)
    return (*head, *kind, *names, *last, instrument.min_tick, *((1,) if is_old else ()))


def _trailing_fields(version: int, instrument: SimulatedInstrument) -> tuple[framing.Field, ...]:
    stock_type = "COMMON" if instrument.sec_type is SecurityType.STOCK else ""
    under = (instrument.symbol, "IND") if instrument.multiplier else ("", "")
    ends = "" if instrument.expiry is None else instrument.expiry.last_trade_date
    fields: tuple[framing.Field, ...] = (1, *under, "26", ends, stock_type)
    sizes = _SIZES.get(instrument.sec_type, _WHOLE_SIZES)
    if version >= _SIZE_INCREMENT_FROM:
        return (*fields, *sizes)
    return (*fields, sizes[-1]) if version == _SUGGESTED_INCREMENT_ONLY else fields


_DAYS = 6
_MODERN = {"US/Eastern": "America/New_York", "US/Central": "America/Chicago"}


def trading_hours(
    market: Market, instrument: SimulatedInstrument, now_s: int, variants: Variants
) -> TradingHours:
    """Return the trading and liquid hours of a contract from today on."""
    zone = instrument.zone
    if variants.hours_zone is HoursZone.LOGIN:
        zone = variants.login_zone
    today = (now_s + offset_s(now_s, zone)) // DAY_S
    trading, liquid = (
        ";".join(_texts(market.hours(instrument, use_rth=use_rth), today, zone))
        for use_rth in (False, True)
    )
    name = _MODERN.get(zone, zone) if variants.zone_names is ZoneNames.MODERN else zone
    return TradingHours(name, trading, liquid)


def _texts(hours: Hours, today: int, zone: str) -> Iterator[str]:
    """Yield the sessions that end on each day, or else begin on it; CLOSED if there is none."""
    near = slice(*np.searchsorted(hours.labels, (today - 3, today + _DAYS + 3)).tolist())
    sessions = [
        (opens + offset_s(opens, zone), closes + offset_s(closes, zone))
        for index in range(near.start, near.stop)
        for opens, closes in hours.parts(index)
    ]
    listed: set[tuple[int, int]] = set()
    for day in range(today, today + _DAYS):
        last_session = [each for each in sessions if (each[1] - 1) // DAY_S == day]
        beginning = [each for each in sessions if each[0] // DAY_S == day]
        if not (last_session or beginning):
            yield f"{date_text(day)}:CLOSED"
        for each in last_session or beginning:
            if each not in listed:
                listed.add(each)
                yield f"{_minute(each[0])}-{_minute(each[1])}"


def _minute(local_s: int) -> str:
    return f"{datetime.fromtimestamp(local_s, UTC):%Y%m%d:%H%M}"


def session_texts(hours: Hours, window: Window, zone: str) -> list[tuple[str, str, str]]:
    """Return start, end and date of every session of a window, as message 106 states them."""
    return [
        (local_text(opens, zone), local_text(closes, zone), date_text(int(hours.labels[at])))
        for at in hours.overlapping(window.start_s, window.end_s)
        for opens, closes in hours.parts(at)
    ]


_ADVANCED_REJECT_FROM = 166

NO_REQUEST = -1
"""The id of errors and notices that concern no request."""


@dataclass(frozen=True, slots=True)
class ApiError:
    """An error or notice of the gateway, for one request or for none."""

    code: int
    text: str
    request_id: int = NO_REQUEST


@dataclass(frozen=True, slots=True)
class HistoryAnswer:
    """The response to a historical request: its stated bounds, and its bars as encoded fields."""

    request_id: int
    start: str
    end: str
    count: int
    fields: bytes


def handshake(version: int, connected_at: str, encoding: str = "utf-8") -> bytes:
    """Return the negotiated version and the connection time, in the machine's encoding."""
    return framing.frame(f"{version}\0{connected_at}\0".encode(encoding))


def error(version: int, failed: ApiError) -> bytes:
    """Return an error or notice; without the sixth field ib_async would drop it."""
    fields = (4, 2, failed.request_id, failed.code, failed.text)
    return framing.message((*fields, "") if version >= _ADVANCED_REJECT_FROM else fields)


def managed_accounts(account: str) -> bytes:
    """Return the list of accounts."""
    return framing.message((15, 1, account))


def next_valid_id(order_id: int) -> bytes:
    """Return the next order id, which ends the start-up for most clients."""
    return framing.message((9, 1, order_id))


def current_time(epoch_s: int) -> bytes:
    """Return the gateway's time."""
    return framing.message((49, 1, epoch_s))


def open_orders_end() -> bytes:
    """Return the end of the list of open orders."""
    return framing.message((53, 1))


def completed_orders_end() -> bytes:
    """Return the end of the list of completed orders."""
    return framing.message((102,))


def executions_end(request_id: int) -> bytes:
    """Return the end of the list of executions."""
    return framing.message((55, 1, request_id))


def head_timestamp(request_id: int, moment: str) -> bytes:
    """Return the start of the oldest bar."""
    return framing.message((88, request_id, moment))


def historical_data(answer: HistoryAnswer) -> bytes:
    """Return message 17, all bars of a request."""
    start = f"17\0{answer.request_id}\0{answer.start}\0{answer.end}\0{answer.count}\0"
    return framing.frame(start.encode() + answer.fields)


def historical_update(request_id: int, bar: tuple[str, ...]) -> bytes:
    """Return message 90, the newest bar of a request for live bars, in its own field order."""
    date, open_, high, low, close, volume, average, count = bar
    return framing.message((90, request_id, count, date, open_, close, high, low, average, volume))


def historical_schedule(
    request_id: int, zone: str, sessions: Sequence[tuple[str, str, str]]
) -> bytes:
    """Return message 106, the start, end and date of at least one session."""
    reach = (sessions[0][0], sessions[-1][1])
    each = (text for session in sessions for text in session)
    return framing.message((106, request_id, *reach, zone, len(sessions), *each))
