"""The questions that are open on one connection: who waits for which frames.

Each is answered once: by its last frame, by an error frame that names it, or by the end of the
connection. What comes afterwards, or for nobody, is dropped. Not here: sending and deadlines.
"""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum

from ktrdr_pipelines.errors import BadAnswerError, GatewayError
from ktrdr_pipelines.ib.protocol.error_codes import ErrorFrame, error_for

_log = logging.getLogger(__name__)


class Topic(StrEnum):
    """What a question is about; its value is the message that brings the answer's parts."""

    BARS = "17"
    HEAD = "88"
    CONTRACT = "10"


@dataclass(slots=True)
class PendingRequest:
    """One open question: its frames so far, codes noted about it, the future of its answer.

    ``route`` says which data farm may serve it (``ib.protocol.requests.route_of``).
    """

    number: int
    topic: Topic
    what: str
    answer: "asyncio.Future[list[list[str]]]"
    route: str = ""
    parts: list[list[str]] = field(default_factory=list)
    codes: set[int] = field(default_factory=set)


class PendingRequests:
    """All open questions of one connection, by their number on the wire."""

    def __init__(self, first_number: int) -> None:
        self.last_number = max(first_number, 1) - 1
        self._open: dict[int, PendingRequest] = {}

    def __len__(self) -> int:
        return len(self._open)

    def add(self, topic: Topic, what: str, route: str = "") -> PendingRequest:
        """Open a question under a number that this connection has not used."""
        answer: asyncio.Future[list[list[str]]] = asyncio.get_running_loop().create_future()
        self.last_number += 1
        pending = PendingRequest(self.last_number, topic, what, answer, route)
        self._open[pending.number] = pending
        return pending

    def drop(self, pending: PendingRequest) -> None:
        """Forget a question; what still comes for it is nobody's."""
        self._open.pop(pending.number, None)
        if not pending.answer.cancel() and not pending.answer.cancelled():
            pending.answer.exception()  # seen, so that nobody reports it as never retrieved

    def part(self, topic: Topic, number: int, fields: list[str]) -> PendingRequest | None:
        """Take a frame of an answer; None where nobody waits for it."""
        pending = self._open.get(number)
        if pending is None or pending.answer.done():
            _log.debug("message %s for request %d, which is not open", topic.value, number)
            return None
        if pending.topic is not topic:
            reason = f"the gateway answered with message {topic.value}"
            self.fail(pending, BadAnswerError(pending.what, reason=reason))
            return None
        pending.parts.append(fields)
        return pending

    def end(self, topic: Topic, number: int) -> PendingRequest | None:
        """Take the frame that says that an answer of several frames is whole."""
        pending = self._open.get(number)
        if pending is None or pending.topic is not topic or pending.answer.done():
            return None
        self.finish(pending)
        return pending

    def finish(self, pending: PendingRequest) -> None:
        """Give the frames to whoever waits."""
        if not pending.answer.done():
            pending.answer.set_result(pending.parts)

    def fail(self, pending: PendingRequest, error: GatewayError) -> None:
        """Give an error to whoever waits, unless there is an answer already."""
        if not pending.answer.done():
            pending.answer.set_exception(error)

    def refuse(self, frame: ErrorFrame) -> GatewayError | None:
        """Let an error frame end the question that it names; give the error, if it is one."""
        pending = self._open.get(frame.request_id)
        if pending is None or pending.answer.done():
            _log.debug("code %d for request %d, not open", frame.code, frame.request_id)
            return None
        error = error_for(frame, pending.what)
        if error is None:
            pending.codes.add(frame.code)
            _log.info("%s: the gateway notes %s", pending.what, frame)
        else:
            self.fail(pending, error)
        return error

    def fail_all(
        self,
        kind: type[GatewayError],
        reason: str,
        *,
        code: int | None = None,
        those: Callable[[PendingRequest], bool] = lambda _: True,
    ) -> None:
        """End every open question, or some of them, with an error of its own."""
        for pending in filter(those, list(self._open.values())):
            self.fail(pending, kind(pending.what, reason=reason, code=code))
