"""What comes in on one connection: answers to open questions, the time, errors and notices.

Not here: asking and deadlines (``ib.gateway``).
"""

import asyncio
import logging
from collections.abc import Callable
from functools import partial
from typing import ClassVar

from ktrdr_pipelines.errors import ConnectionLostError, OutageError
from ktrdr_pipelines.ib.clock import boot_time_s
from ktrdr_pipelines.ib.codes import NO_REQUEST, ErrorFrame, error_frame
from ktrdr_pipelines.ib.health import GatewayClock
from ktrdr_pipelines.ib.notes import GatewayNotes
from ktrdr_pipelines.ib.notices import Notices
from ktrdr_pipelines.ib.questions import Question, Questions, Topic
from ktrdr_pipelines.limits import CodeClass

_DROPPED = frozenset({502, 504, 507, 1300})
_SCHEDULE = "106"
_VERSION_WITHOUT_PREFIX = 164
_log = logging.getLogger(__name__)


class Inbox:
    """Takes the frames of one connection.

    ``time_told`` is set when it tells the time; ``on_pacing`` is called when it complains about
    all requests together; ``answered_at_s`` is when it last answered a question about data.
    """

    def __init__(self, server_version: Callable[[], int]) -> None:
        self.questions = Questions(1)
        self.notes = GatewayNotes()
        self.notices = Notices()
        self.clock = GatewayClock()
        self.time_told = asyncio.Event()
        self._news = asyncio.Event()
        self.on_pacing: Callable[[], None] = _nothing
        self.answered_at_s: float | None = None
        self._server_version = server_version

    def take(self, fields: list[str]) -> None:
        """Take a frame; kinds that no question asks for are dropped.

        Raises:
            ValueError, IndexError: it is none; the connection cannot be trusted any more.
        """
        if (handler := self._handlers.get(int(fields[0]))) is not None:
            handler(self, fields)

    async def news(self) -> None:
        """Wait until the gateway has said something about its own connections, or is gone."""
        await self._news.wait()

    def end(self, why: str) -> None:
        """Fail all that is open: the connection is gone."""
        self.questions.fail_all(ConnectionLostError, why)
        self.time_told.set()
        self.tell_news()

    def _take_error(self, fields: list[str]) -> None:
        frame = error_frame(fields)
        self.notices.see_text(frame)
        if frame.request_id != NO_REQUEST and self.questions.refuse(frame) is not None:
            return
        self._take_notice(frame)

    def _take_notice(self, frame: ErrorFrame) -> None:
        _log.info("the gateway says %s", frame)
        over = self.notes.take(frame, after=self.questions.last_number)
        if over:
            came = f"the gateway had lost its connection ({frame})"
            lost = partial(self.notes.cost, over=over)
            self.questions.fail_all(OutageError, came, code=frame.code, those=lost)
        elif frame.means is CodeClass.PACING:
            self.on_pacing()
        elif frame.code in _DROPPED:
            self.questions.fail_all(ConnectionLostError, str(frame), code=frame.code)
        self.tell_news()

    def tell_news(self) -> None:
        """Wake what waits for news."""
        self._news.set()
        self._news = asyncio.Event()

    def _note_answer(self, question: Question | None) -> None:
        if question is not None:
            self.answered_at_s = boot_time_s()
            self.notes.answered(question)
            self.tell_news()

    def _take_contract(self, fields: list[str]) -> None:
        number = fields[2] if self._server_version() < _VERSION_WITHOUT_PREFIX else fields[1]
        self.questions.part(Topic.CONTRACT, int(number), fields)

    def _take_contracts_end(self, fields: list[str]) -> None:
        self._note_answer(self.questions.end(Topic.CONTRACT, int(fields[2])))

    def _take_time(self, fields: list[str]) -> None:
        self.clock.see(int(fields[2]))
        self.time_told.set()

    def _take_answer(self, fields: list[str]) -> None:
        """Take a message that is a whole answer; one of SCHEDULE answers a request for bars."""
        topic = Topic.BARS if fields[0] == _SCHEDULE else Topic(fields[0])
        question = self.questions.part(topic, int(fields[1]), fields)
        if question is not None:
            self.questions.finish(question)
        self._note_answer(question)

    _handlers: ClassVar[dict[int, Callable[["Inbox", list[str]], None]]] = {
        4: _take_error,
        10: _take_contract,
        17: _take_answer,
        49: _take_time,
        52: _take_contracts_end,
        88: _take_answer,
        106: _take_answer,
    }


def _nothing() -> None:
    """Do nothing: nobody minds the budget of this connection."""
