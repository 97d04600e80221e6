"""What one client is told where a gateway answers from a capture.

A question is matched by its meaning: the same message with the same fields, whatever its request
id. Its end must be the same text, else the same moment, else both must mean now: bars to another
end would be a false answer. Recorded several times, it is answered in the recorded order and then
by the last answer again. Every connection hears the record from its beginning.

An answer goes out when the frame that ended it is due, the notices of the gateway at their own
time; no wait between two frames is longer than ``longest_wait_s``. What was never answered stays
without an answer; what is not in the record is refused.

Not here: sending and cancelling (``connection``), faults on top (``serving``).
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime

from ktrdr_pipelines.simulator import replies, wire
from ktrdr_pipelines.simulator.answers import Answer
from ktrdr_pipelines.simulator.capture import Capture
from ktrdr_pipelines.simulator.exchanges import (
    COUNT_FIELDS,
    DETAILS,
    HEAD,
    Exchange,
    Exchanges,
    Said,
    exchanges_of,
)
from ktrdr_pipelines.simulator.messages import ContractRequest, DataRequest, HistoryRequest
from ktrdr_pipelines.simulator.refusals import SERVICE
from ktrdr_pipelines.simulator.replies import NO_REQUEST, ApiError
from ktrdr_pipelines.simulator.timetext import EndTimeError, parse_end

LONGEST_WAIT_S = 2.0
"""Seconds that the longest wait of a record is cut to, where nothing else is said."""

NOT_ON_RECORD = "This gateway replays a record, which holds no answer to this question."
_NOW_S = 300
"""How far from the clock an end may lie to mean now."""


@dataclass(frozen=True, slots=True)
class Aside:
    """Bytes that are to be sent after some seconds, whatever becomes of a request."""

    after_s: float
    data: bytes


@dataclass(frozen=True, slots=True)
class Retold:
    """What is said to a question: an answer after some seconds, None for silence; and asides."""

    answer: Answer | None
    after_s: float = 0.0
    asides: tuple[Aside, ...] = ()
    is_recorded: bool = True


@dataclass(frozen=True, slots=True)
class Script:
    """A capture sorted by question, and how it is told."""

    version: int
    began_s: float
    exchanges: Exchanges
    longest_wait_s: float = LONGEST_WAIT_S


def script_of(capture: Capture, longest_wait_s: float) -> Script:
    """Make a capture ready to be told.

    Raises:
        SimulatorError: a frame has not the fields of its message; file and line are named.
    """
    return Script(capture.version, capture.began.timestamp(), exchanges_of(capture), longest_wait_s)


class Retelling:
    """Tells one client what a script holds.

    Args:
        script: the same for all clients.
        now: the gateway's time.
    """

    def __init__(self, script: Script, now: Callable[[], datetime]) -> None:
        self._script = script
        self._now = now
        self._told: set[Exchange] = set()
        self._given: dict[int, Exchange] = {}

    def opening(self) -> tuple[Aside, ...]:
        """Return what the gateway said before the first question."""
        said = self._script.exchanges.opening
        return _asides(self._timed(0.0, said), NO_REQUEST)

    def answer(self, request: DataRequest) -> Retold:
        """Return what is said to a question; the next time it may be something else."""
        found = self._matching(request)
        if not found:
            return Retold(_refusal(self._script.version, request), is_recorded=False)
        fresh = [each for each in found if each not in self._told]
        exchange = fresh[0] if fresh else found[-1]
        self._told.add(exchange)
        self._given[request.request_id] = exchange
        return self._retold(exchange, request.request_id, is_fresh=bool(fresh))

    def cancelled(self, request_id: int) -> tuple[Aside, ...] | None:
        """Return what is said to giving a question up; None where nobody did so on record."""
        exchange = self._given.pop(request_id, None)
        if exchange is None or exchange.cancelled_s is None:
            return None
        return _asides(self._timed(exchange.cancelled_s, exchange.after_cancel), request_id)

    def _retold(self, exchange: Exchange, request_id: int, *, is_fresh: bool) -> Retold:
        timed = list(self._timed(exchange.asked_s, exchange.said))
        notices = [each for each in timed if each[1].is_notice and is_fresh]
        own = [each for each in timed if not each[1].is_notice]
        ends = [after_s for after_s, said in own if said.answers]
        ends = ends or [after_s for after_s, said in own if said.refuses]
        if not ends:
            return Retold(None, asides=_asides([*own, *notices], request_id))
        answer = _answer([said for _, said in own], request_id)
        return Retold(answer, ends[0], _asides(notices, request_id))

    def _matching(self, request: DataRequest) -> Sequence[Exchange]:
        """Return the exchanges about a question; those of its very end before others."""
        alike = self._script.exchanges.alike(request)
        if not isinstance(request, HistoryRequest):
            return alike
        now_s = int(self._now().timestamp())
        for meaning in (_text, _moment, _nowness):
            asked = meaning(request.end, now_s)
            found = [each for each in alike if self._end(each, meaning) == asked]
            if found and asked is not None:
                return found
        return []

    def _end(self, exchange: Exchange, meaning: "_Meaning") -> object:
        end = exchange.request.end if isinstance(exchange.request, HistoryRequest) else ""
        return meaning(end, int(self._script.began_s + exchange.asked_s))

    def _timed(self, from_s: float, said: Iterable[Said]) -> Iterator[tuple[float, Said]]:
        """Give each frame with its seconds from a moment on, long waits cut."""
        after_s, last_s = 0.0, from_s
        for each in said:
            after_s += min(max(0.0, each.at_s - last_s), self._script.longest_wait_s)
            last_s = each.at_s
            yield after_s, each


_Meaning = Callable[[str, int], object]


def _text(end: str, _: int) -> object:
    return end


def _moment(end: str, now_s: int) -> object:
    """Return the moment of an end, and whether its zone was assumed; None for now or nonsense."""
    try:
        return parse_end(end, now_s) if end else None
    except EndTimeError:
        return None


def _nowness(end: str, now_s: int) -> object:
    try:
        read = parse_end(end, now_s)
    except EndTimeError:
        return None
    return read.zone_assumed if abs(read.seconds - now_s) <= _NOW_S else None


def _asides(timed: Iterable[tuple[float, Said]], request_id: int) -> tuple[Aside, ...]:
    return tuple(
        Aside(after_s, wire.message(said.fields_for(request_id))) for after_s, said in timed
    )


def _answer(said: Sequence[Said], request_id: int) -> Answer:
    """Join the frames of an answer, and say what they amount to."""
    data = b"".join(wire.message(each.fields_for(request_id)) for each in said)
    if not any(each.answers for each in said):
        return Answer(data, error_code=next(one.code for one in said if one.refuses))
    return Answer(data, count=sum(map(_count, said)))


def _count(said: Said) -> int:
    """Return how many bars, sessions, contracts or heads a frame tells."""
    kind = said.fields[0]
    if kind in COUNT_FIELDS:
        return int(said.fields[COUNT_FIELDS[kind]])
    return int(kind in {DETAILS, HEAD})


def _refusal(version: int, request: DataRequest) -> Answer:
    """Refuse what is not on record; it is never "no data", which would settle something."""
    is_contract = isinstance(request, ContractRequest)
    code, text = (200, NOT_ON_RECORD) if is_contract else (162, SERVICE + NOT_ON_RECORD)
    error = ApiError(code, text, request.request_id)
    return Answer(replies.error(version, error), error_code=code)
