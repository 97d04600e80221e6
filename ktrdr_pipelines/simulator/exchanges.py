"""What a capture holds, by question: what the gateway said to it, and what it said to its cancel.

Frames of the gateway belong to the question whose request id they carry; those that concern no
request (1100, 2105, ...) to the question after which they came, so that a cause still comes before
its effect when the questions are asked at another pace.

Not here: choosing among them for a client (``retelling``), the file (``capture``).
"""

from collections import defaultdict
from dataclasses import dataclass, field, replace

from ktrdr_pipelines.limits import CodeClass, IbLimitsRegistry
from ktrdr_pipelines.simulator.capture import Capture, Frame, Way
from ktrdr_pipelines.simulator.decoding import MessageError, decode
from ktrdr_pipelines.simulator.messages import (
    CancelHead,
    CancelHistory,
    ContractRequest,
    DataRequest,
    HeadRequest,
    HistoryRequest,
)
from ktrdr_pipelines.simulator.replies import NO_REQUEST

DETAILS, DETAILS_END, BARS, HEAD, SCHEDULE, ERROR = "10", "52", "17", "88", "106", "4"
_ID_FIELDS = {DETAILS: 1, DETAILS_END: 2, BARS: 1, HEAD: 1, SCHEDULE: 1, ERROR: 2}
"""Where each message of the gateway has its request id."""

_DETAILS_WITHOUT_VERSION = 164
"""From this server version on message 10 has no version field before the id (grade S)."""

_FEWEST_FIELDS = {DETAILS: 3, DETAILS_END: 3, BARS: 5, HEAD: 3, SCHEDULE: 6, ERROR: 5}

COUNT_FIELDS = {BARS: 4, SCHEDULE: 5}
"""Where an answer says how many bars or sessions it holds."""

_CODE_FIELD = 3
_NUMBER_FIELDS = COUNT_FIELDS | {ERROR: _CODE_FIELD}


@dataclass(frozen=True, slots=True)
class Said:
    """A frame of the gateway's, and where it has the request id; -1 where it concerns none."""

    at_s: float
    fields: tuple[str, ...]
    id_field: int

    @property
    def is_notice(self) -> bool:
        """Whether it concerns the gateway and no request."""
        return self.fields[self.id_field] == str(NO_REQUEST)

    @property
    def answers(self) -> bool:
        """Whether a request has its whole answer with this."""
        return self.fields[0] not in {ERROR, DETAILS}

    @property
    def refuses(self) -> bool:
        """Whether it is an error of a request; a warning (2174, 2188) is none."""
        if self.fields[0] != ERROR or self.is_notice:
            return False
        return IbLimitsRegistry.class_of(self.code, self.fields[4]) is not CodeClass.NOTICE

    @property
    def code(self) -> int:
        """The code of an error."""
        return int(self.fields[_CODE_FIELD])

    def fields_for(self, request_id: int) -> tuple[str, ...]:
        """Return the fields with the id of who asks now."""
        if self.is_notice:
            return self.fields
        before, after = self.fields[: self.id_field], self.fields[self.id_field + 1 :]
        return (*before, str(request_id), *after)


@dataclass(slots=True, eq=False)
class Exchange:
    """One question and all that was said to it; nothing, where the gateway stayed silent.

    The same question asked twice makes two, which are never equal.
    ``cancelled_s`` is when the client gave it up, None where it never did; ``after_cancel`` is
    what the gateway said from then on.
    """

    request: DataRequest
    asked_s: float
    said: list[Said] = field(default_factory=list)
    cancelled_s: float | None = None
    after_cancel: list[Said] = field(default_factory=list)

    def add(self, said: Said) -> None:
        """Add what the gateway said."""
        (self.said if self.cancelled_s is None else self.after_cancel).append(said)


@dataclass(frozen=True, slots=True)
class Exchanges:
    """Everything that a capture holds: what was said before the first question, then by question.

    The questions lie under their ``meaning`` without their end.
    """

    opening: tuple[Said, ...]
    by_meaning: dict[DataRequest, tuple[Exchange, ...]]

    def alike(self, request: DataRequest) -> tuple[Exchange, ...]:
        """Return the exchanges about the same thing, to whatever end, oldest first."""
        return self.by_meaning.get(meaning_of(request), ())


def meaning_of(request: DataRequest) -> DataRequest:
    """Return what is asked, whoever asks: without the id and the end."""
    if isinstance(request, HistoryRequest):
        return replace(request, request_id=NO_REQUEST, end="")
    return replace(request, request_id=NO_REQUEST)


def exchanges_of(capture: Capture) -> Exchanges:
    """Sort a capture by question.

    Raises:
        SimulatorError: a frame has not the fields of its message; file and line are named.
    """
    sorter = _Sorter(capture)
    for frame in capture.frames:
        sorter.take(frame)
    by_meaning: defaultdict[DataRequest, list[Exchange]] = defaultdict(list)
    for exchange in sorter.exchanges:
        by_meaning[meaning_of(exchange.request)].append(exchange)
    found = {meaning: tuple(each) for meaning, each in by_meaning.items()}
    return Exchanges(tuple(sorter.opening), found)


class _Sorter:
    """Takes the frames of a capture one after the other."""

    def __init__(self, capture: Capture) -> None:
        self._capture = capture
        self._latest: dict[int, Exchange] = {}
        self.exchanges: list[Exchange] = []
        self.opening: list[Said] = []

    def take(self, frame: Frame) -> None:
        """Take one frame; what is about neither data nor errors is passed over."""
        try:
            if frame.way is Way.OUT:
                self._asked(frame)
            elif frame.fields[0] in _ID_FIELDS:
                self._said(frame)
        except (MessageError, ValueError) as error:
            raise self._capture.error(
                frame.line, f"not the fields of message {frame.fields[0]}: {error}"
            ) from error

    def _asked(self, frame: Frame) -> None:
        match decode(list(frame.fields)):
            case ContractRequest() | HeadRequest() | HistoryRequest() as request:
                exchange = Exchange(request, frame.at_s)
                self._latest[request.request_id] = exchange
                self.exchanges.append(exchange)
            case CancelHistory(request_id) | CancelHead(request_id):
                given_up = self._latest.get(request_id)
                if given_up is not None and given_up.cancelled_s is None:
                    given_up.cancelled_s = frame.at_s

    def _said(self, frame: Frame) -> None:
        said = self._read(frame)
        if not said.is_notice:
            request_id = int(said.fields[said.id_field])
            if request_id in self._latest:
                self._latest[request_id].add(said)
        elif self.exchanges:
            self.exchanges[-1].add(said)
        else:
            self.opening.append(said)

    def _read(self, frame: Frame) -> Said:
        kind = frame.fields[0]
        if len(frame.fields) < _FEWEST_FIELDS[kind]:
            raise ValueError(f"there are {len(frame.fields)}")
        has_version = kind == DETAILS and self._capture.version < _DETAILS_WITHOUT_VERSION
        if kind in _NUMBER_FIELDS:
            int(frame.fields[_NUMBER_FIELDS[kind]])
        return Said(frame.at_s, frame.fields, _ID_FIELDS[kind] + has_version)
