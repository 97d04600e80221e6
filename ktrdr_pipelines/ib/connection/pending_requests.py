"""The pending requests of one connection, and the frames that belong to them.

Each is completed once: by its last frame, by an error frame that names it, or by the end of the
connection. Frames for a request that is not pending are dropped.

Not here: sending and deadlines (``ib.connection.connection``).
"""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum

from ktrdr_pipelines.errors import BadAnswerError, GatewayError
from ktrdr_pipelines.ib.protocol.bar_rows import Message
from ktrdr_pipelines.ib.protocol.error_codes import ErrorFrame, error_for

_log = logging.getLogger(__name__)


class Topic(StrEnum):
    """What a request is about; the value is the kind of message that the response consists of."""

    BARS = "17"
    HEAD = "88"
    CONTRACT = "10"


@dataclass(slots=True)
class PendingRequest:
    """One pending request: its messages so far, noted codes, and the future of its response.

    ``route`` decides which data farm may serve it (``ib.protocol.requests.route_of``).
    """

    number: int
    topic: Topic
    what: str
    answer: "asyncio.Future[list[Message]]"
    route: str = ""
    parts: list[Message] = field(default_factory=list)
    codes: set[int] = field(default_factory=set)


class PendingRequests:
    """All pending requests of one connection, by request id."""

    def __init__(self, first_number: int) -> None:
        self.last_number = max(first_number, 1) - 1
        self._open: dict[int, PendingRequest] = {}

    def __len__(self) -> int:
        return len(self._open)

    def add(self, topic: Topic, what: str, route: str = "") -> PendingRequest:
        """Add a request under an id that this connection has not used."""
        answer: asyncio.Future[list[Message]] = asyncio.get_running_loop().create_future()
        self.last_number += 1
        pending = PendingRequest(self.last_number, topic, what, answer, route)
        self._open[pending.number] = pending
        return pending

    def drop(self, pending: PendingRequest) -> None:
        """Remove a request; frames that still arrive for it are dropped."""
        self._open.pop(pending.number, None)
        if not pending.answer.cancel() and not pending.answer.cancelled():
            pending.answer.exception()  # so that asyncio does not report it as never retrieved

    def part(self, topic: Topic, number: int, message: Message) -> PendingRequest | None:
        """Add a message of a response; return its request, or None if none is pending."""
        pending = self._open.get(number)
        if pending is None or pending.answer.done():
            _log.debug("message %s for request %d, which is not open", topic.value, number)
            return None
        if pending.topic is not topic:
            reason = f"the gateway responded with message {topic.value}"
            self.fail(pending, BadAnswerError(pending.what, reason=reason))
            return None
        pending.parts.append(message)
        return pending

    def end(self, topic: Topic, number: int) -> PendingRequest | None:
        """Handle the frame that ends a response of several frames; return its request."""
        pending = self._open.get(number)
        if pending is None or pending.topic is not topic or pending.answer.done():
            return None
        self.finish(pending)
        return pending

    def finish(self, pending: PendingRequest) -> None:
        """Complete a request with the frames of its response."""
        if not pending.answer.done():
            pending.answer.set_result(pending.parts)

    def fail(self, pending: PendingRequest, error: GatewayError) -> None:
        """Complete a request with an error, unless it is complete already."""
        if not pending.answer.done():
            pending.answer.set_exception(error)

    def refuse(self, frame: ErrorFrame) -> GatewayError | None:
        """Fail the request that an error frame names; return the error, None for a mere notice."""
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
        """Fail every pending request, or some of them, each with its own error."""
        for pending in filter(those, list(self._open.values())):
            self.fail(pending, kind(pending.what, reason=reason, code=code))
