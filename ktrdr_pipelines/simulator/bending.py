"""Answers that are not what they should be: the bars of message 17 changed on their way out.

Answer in, answer out; other messages pass as they are. Not here: when this happens (``faults``).
"""

import struct
from collections.abc import Callable, Iterator
from random import Random

from ktrdr_pipelines.simulator import replies, wire
from ktrdr_pipelines.simulator.answers import Answer
from ktrdr_pipelines.simulator.faults import Fault, FaultRule
from ktrdr_pipelines.simulator.languages import localised
from ktrdr_pipelines.simulator.replies import ApiError
from ktrdr_pipelines.simulator.variants import Language

NEWEST_MISSING = "Up-to-the-second historical data requires additional subscription for the API."

Bar = list[str]
Change = Callable[[list[Bar], FaultRule], list[Bar]]

_HEADER = 5
_PER_BAR = 8
_OPEN, _CLOSE, _VOLUME = 1, 4, 5
_LENGTH = struct.Struct(">I")


def bent(
    answered: Answer,
    rule: FaultRule,
    *,
    version: int,
    request_id: int,
    language: Language = Language.ENGLISH,
) -> Answer:
    """Return an answer with its bars changed as a fault has it, and counted again."""
    out, count = b"", answered.count
    for payload in _frames(answered.data):
        fields = wire.split_fields(payload)
        if fields[0] == "17":
            bars = _CHANGES[rule.fault](_bars_of(fields), rule)
            fields, count = _with_bars(fields, bars), len(bars)
        out += wire.message(fields)
    if rule.fault is Fault.NEWEST_MISSING:
        notice = localised(language, ApiError(2188, NEWEST_MISSING, request_id))
        out = replies.error(version, notice) + out
    return Answer(out, count)


def _frames(data: bytes) -> Iterator[bytes]:
    """Cut an answer, of any length, into payloads."""
    at = 0
    while at < len(data):
        (length,) = _LENGTH.unpack_from(data, at)
        at += _LENGTH.size
        yield data[at : at + length]
        at += length


def _bars_of(fields: list[str]) -> list[Bar]:
    texts = fields[_HEADER:]
    return [texts[at : at + _PER_BAR] for at in range(0, len(texts), _PER_BAR)]


def _with_bars(fields: list[str], bars: list[Bar]) -> list[str]:
    header = [*fields[: _HEADER - 1], str(len(bars))]
    return [*header, *(text for bar in bars for text in bar)]


def _without_newest(bars: list[Bar], rule: FaultRule) -> list[Bar]:
    return bars[: max(1, len(bars) - int(rule.number("bars")))]


def _newest_share(bars: list[Bar], rule: FaultRule) -> list[Bar]:
    """Keep the newest part: the answer stops short of what was asked."""
    return bars[-max(1, int(len(bars) * rule.number("share"))) :]


def _twice(bars: list[Bar], _: FaultRule) -> list[Bar]:
    """Send every third bar twice."""
    return [bar for at, bar in enumerate(bars) for _ in range(2 if at % 3 == 0 else 1)]


def _conflicting(bars: list[Bar], _: FaultRule) -> list[Bar]:
    """Send the last bar again with other prices."""
    return [*bars, *(_scaled(bar, 0.5) for bar in bars[-1:])]


def _shuffled(bars: list[Bar], _: FaultRule) -> list[Bar]:
    mixed = list(bars)
    Random(len(bars)).shuffle(mixed)  # noqa: S311 - a repeatable disorder
    return mixed


def _restated(bars: list[Bar], rule: FaultRule) -> list[Bar]:
    """Scale prices, and volumes the other way, as a split does."""
    return [_scaled(bar, rule.number("factor")) for bar in bars]


def _scaled(bar: Bar, factor: float) -> Bar:
    prices = [repr(float(text) * factor) for text in bar[_OPEN : _CLOSE + 1]]
    volume = bar[_VOLUME] if bar[_VOLUME] == "-1" else repr(float(bar[_VOLUME]) / factor)
    average = bar[6] if bar[6] == "-1" else repr(float(bar[6]) * factor)
    return [bar[0], *prices, volume, average, bar[7]]


_CHANGES: dict[Fault, Change] = {
    Fault.NEWEST_MISSING: _without_newest,
    Fault.PARTIAL: _newest_share,
    Fault.DUPLICATED: _twice,
    Fault.CONFLICTING: _conflicting,
    Fault.UNORDERED: _shuffled,
    Fault.RESTATED: _restated,
}
