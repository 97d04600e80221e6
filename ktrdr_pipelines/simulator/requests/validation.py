"""Parse and validate requests: their instrument, and the texts of a historical request.

The instruments that match depend on the gateway's time: expired contracts, and the front month of
a continuous future. A historical request is checked in the order of a real gateway (grade R): the
end, the duration, the bar size, what to show, live updates; then the contract and the data that it
has.

Not here: the texts of errors (``refusals``), and the decoding of messages (``protocol.messages``).
"""

from collections.abc import Sequence
from dataclasses import dataclass

from ktrdr_pipelines.simulator.market.futures import with_front
from ktrdr_pipelines.simulator.market.market import Market, What
from ktrdr_pipelines.simulator.market.simulated_instruments import (
    SecurityType,
    SimulatedInstrument,
    fitting,
)
from ktrdr_pipelines.simulator.protocol.messages import ContractFields, HistoryRequest
from ktrdr_pipelines.simulator.protocol.time_texts import BAD_END, EndTime, EndTimeError, parse_end
from ktrdr_pipelines.simulator.requests.durations import (
    DAY,
    LEGAL_SIZES,
    SIZE_BY_TEXT,
    WEEK,
    BarSize,
    Duration,
    DurationError,
    DurationTable,
    parse_duration,
    step_refusal,
)
from ktrdr_pipelines.simulator.requests.refusals import (
    END_OF_ADJUSTED,
    END_OF_CONTINUOUS,
    END_OF_LIVE,
    EXPIRED,
    LONG_ADJUSTED,
    SIZE_OF_LIVE,
    SIZE_OF_SCHEDULE,
    UNKNOWN_CONTRACT,
    WHAT_OF_LIVE,
    RefusedError,
    check_shown,
    invalid,
    service_error,
)
from ktrdr_pipelines.simulator.variants import Variants


@dataclass(frozen=True, slots=True)
class Found:
    """An instrument of the market, and the contract as which the gateway describes it now."""

    instrument: SimulatedInstrument
    shown: SimulatedInstrument


def find(
    instruments: Sequence[SimulatedInstrument], wanted: ContractFields, now_s: int
) -> list[Found]:
    """Return every instrument that matches a request and is known now."""
    if wanted.sec_type == SecurityType.CONTINUOUS:
        chains = (each for each in instruments if each.sec_type is SecurityType.CONTINUOUS)
        found = [Found(each, with_front(each, instruments, now_s)) for each in chains]
        return [each for each in found if fitting([each.shown], wanted)]
    return [
        Found(each, each)
        for each in fitting(instruments, wanted)
        if each.is_known(now_s, include_expired=wanted.include_expired)
    ]


def find_all(
    instruments: Sequence[SimulatedInstrument], wanted: ContractFields, now_s: int
) -> list[Found]:
    """Return every instrument that matches a request for contract details.

    Raises:
        RefusedError: no instrument matches.
    """
    found = find(instruments, wanted, now_s)
    if not found:
        raise RefusedError(200, UNKNOWN_CONTRACT)
    return found


def find_one(
    instruments: Sequence[SimulatedInstrument], wanted: ContractFields, now_s: int
) -> Found:
    """Return the only instrument that matches a request for data.

    Raises:
        RefusedError: none or several match, or the only one expired too long ago.
    """
    if not wanted.exchange:
        raise invalid("Please enter exchange")
    found = find(instruments, wanted, now_s)
    if not found:
        expiring = [each for each in fitting(instruments, wanted) if each.expiry is not None]
        if wanted.include_expired and len(expiring) == 1:
            raise RefusedError(166, EXPIRED)  # the contract existed, and expired too long ago
        raise RefusedError(200, UNKNOWN_CONTRACT)
    if len(found) > 1:
        name = wanted.symbol or wanted.local_symbol
        raise RefusedError(200, f"The contract description specified for {name} is ambiguous.")
    return found[0]


_LIVE_WHAT = frozenset({What.TRADES, What.MIDPOINT, What.BID, What.ASK, What.AGGTRADES})
_SHORTEST_LIVE_S = 5


@dataclass(frozen=True, slots=True)
class Setting:
    """What a response depends on besides its request."""

    market: Market
    version: int
    now_s: int
    durations: DurationTable = DurationTable.WIDE
    variants: Variants = Variants()  # noqa: RUF009 - immutable


@dataclass(frozen=True, slots=True)
class ParsedHistoryRequest:
    """A historical request with its texts parsed."""

    instrument: SimulatedInstrument
    what: What
    size: BarSize
    duration: Duration
    end: EndTime


def read_history(setting: Setting, request: HistoryRequest) -> ParsedHistoryRequest:
    """Parse and check a historical request.

    Raises:
        RefusedError: a text is malformed, or the instrument has no such data.
    """
    try:
        end = parse_end(request.end, setting.now_s, setting.variants.login_zone)
    except EndTimeError:
        raise RefusedError(10314, BAD_END) from None
    try:
        duration = parse_duration(request.duration)
    except DurationError as error:
        raise invalid(str(error)) from None
    size = _size(request.bar_size, setting.variants)
    what = read_what(request.what)
    _check_together(request, what, size)
    instrument = find_one(setting.market.instruments(), request.contract, setting.now_s).instrument
    if instrument.sec_type is SecurityType.CONTINUOUS and request.end:
        raise RefusedError(10339, END_OF_CONTINUOUS)
    check_shown(instrument, what, size.seconds)
    refused = step_refusal(setting.durations, duration, size)
    if refused is not None:
        raise service_error(refused)
    return ParsedHistoryRequest(instrument, what, size, duration, end)


def read_what(text: str) -> What:
    """Return the ``whatToShow`` of a text.

    Raises:
        RefusedError: the name is unknown, or this gateway does not support it.
    """
    try:
        return What(text)
    except ValueError:
        raise invalid(f"The what to show field is missing or incorrect: {text!r}") from None


def _check_together(request: HistoryRequest, what: What, size: BarSize) -> None:
    """Refuse combinations of texts that are each valid alone."""
    is_adjusted, is_live = what is What.ADJUSTED_LAST, request.keep_up_to_date
    rules = (
        (is_adjusted and request.end != "", END_OF_ADJUSTED),
        (is_adjusted and size > DAY, LONG_ADJUSTED),
        (is_live and request.end != "", END_OF_LIVE),
        (is_live and what not in _LIVE_WHAT, WHAT_OF_LIVE),
        (is_live and size.seconds < _SHORTEST_LIVE_S, SIZE_OF_LIVE),
        (what is What.SCHEDULE and size != DAY, SIZE_OF_SCHEDULE),
    )
    for is_broken, cause in rules:
        if is_broken:
            raise invalid(cause)


def _size(text: str, variants: Variants) -> BarSize:
    size = SIZE_BY_TEXT.get(text)
    if size is None or (size == WEEK and not variants.week_name.admits(text)):
        raise invalid(f"Historical data bar size setting is invalid. Legal ones are: {LEGAL_SIZES}")
    return size
