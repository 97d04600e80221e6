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
class Question:
    """One open question: its frames so far, codes noted about it, the future of its answer.

    ``route`` says which data farm may serve it (``ib.protocol.requests.route_of``).
    """

    number: int
    topic: Topic
    asked: str
    answer: "asyncio.Future[list[list[str]]]"
    route: str = ""
    parts: list[list[str]] = field(default_factory=list)
    noted: set[int] = field(default_factory=set)


class PendingRequests:
    """All open questions of one connection, by their number on the wire."""

    def __init__(self, first_number: int) -> None:
        self.last_number = max(first_number, 1) - 1
        self._open: dict[int, Question] = {}

    def __len__(self) -> int:
        return len(self._open)

    def add(self, topic: Topic, asked: str, route: str = "") -> Question:
        """Open a question under a number that this connection has not used."""
        answer: asyncio.Future[list[list[str]]] = asyncio.get_running_loop().create_future()
        self.last_number += 1
        question = Question(self.last_number, topic, asked, answer, route)
        self._open[question.number] = question
        return question

    def drop(self, question: Question) -> None:
        """Forget a question; what still comes for it is nobody's."""
        self._open.pop(question.number, None)
        if not question.answer.cancel() and not question.answer.cancelled():
            question.answer.exception()  # seen, so that nobody reports it as never retrieved

    def part(self, topic: Topic, number: int, fields: list[str]) -> Question | None:
        """Take a frame of an answer; None where nobody waits for it."""
        question = self._open.get(number)
        if question is None or question.answer.done():
            _log.debug("message %s for request %d, which is not open", topic.value, number)
            return None
        if question.topic is not topic:
            reason = f"the gateway answered with message {topic.value}"
            self.fail(question, BadAnswerError(question.asked, reason=reason))
            return None
        question.parts.append(fields)
        return question

    def end(self, topic: Topic, number: int) -> Question | None:
        """Take the frame that says that an answer of several frames is whole."""
        question = self._open.get(number)
        if question is None or question.topic is not topic or question.answer.done():
            return None
        self.finish(question)
        return question

    def finish(self, question: Question) -> None:
        """Give the frames to whoever waits."""
        if not question.answer.done():
            question.answer.set_result(question.parts)

    def fail(self, question: Question, error: GatewayError) -> None:
        """Give an error to whoever waits, unless there is an answer already."""
        if not question.answer.done():
            question.answer.set_exception(error)

    def refuse(self, frame: ErrorFrame) -> GatewayError | None:
        """Let an error frame end the question that it names; give the error, if it is one."""
        question = self._open.get(frame.request_id)
        if question is None or question.answer.done():
            _log.debug("code %d for request %d, not open", frame.code, frame.request_id)
            return None
        error = error_for(frame, question.asked)
        if error is None:
            question.noted.add(frame.code)
            _log.info("%s: the gateway notes %s", question.asked, frame)
        else:
            self.fail(question, error)
        return error

    def fail_all(
        self,
        kind: type[GatewayError],
        reason: str,
        *,
        code: int | None = None,
        those: Callable[[Question], bool] = lambda _: True,
    ) -> None:
        """End every open question, or some of them, with an error of its own."""
        for question in filter(those, list(self._open.values())):
            self.fail(question, kind(question.asked, reason=reason, code=code))
