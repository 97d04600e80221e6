"""One case a chunk: ask for it, and by narrower requests again, until nothing more is provable.

Not here: what is decided (``core.plan``, ``core.settle``, ``core.doubts``), what follows
from failures (``load.work``).
"""

from datetime import datetime

from ktrdr_pipelines.core.answers import Answer, NoData
from ktrdr_pipelines.core.coverage import Coverage, Emptiness
from ktrdr_pipelines.core.doubts import (
    Doubts,
    after_answer,
    after_no_data,
    quiet_and_empty,
    silent_before,
)
from ktrdr_pipelines.core.intervals import Interval, IntervalSet
from ktrdr_pipelines.core.plan import Chunk, plan
from ktrdr_pipelines.core.settle import Question, Settlement, settle
from ktrdr_pipelines.load.desk import Desk

_OTHER_SESSIONS = "nothing, the gateway has other sessions"


class Case:
    """The work on one chunk of a series; made and used once.

    Doubts about a chunk are dealt with before the next chunk, newest first, so that a window is
    finished soon and little has to be kept in mind. ``asking`` is what was asked for last.
    """

    def __init__(self, desk: Desk, chunk: Chunk) -> None:
        self._desk = desk
        self._chunk = chunk
        self._doubts = self._known_silence()
        self.asking = chunk

    async def run(self) -> None:
        """Ask until nothing more of the chunk can be proved.

        Raises:
            GatewayError: a request failed after all tries.
            StoreError: what was answered could not be saved.
        """
        chunks = [self._chunk] if self._desk.need(self._chunk.stamps).gaps() else []
        if not chunks:
            self._desk.means.progress.answered(self._desk.series, 0)
        while chunks and not self._desk.is_over:
            await self._ask(chunks[0])
            chunks = plan(self._desk.need(self._chunk.stamps), self._doubts.open)
            if chunks:
                self._desk.means.progress.planned(self._desk.series, 1)

    def _known_silence(self) -> Doubts:
        """Begin in doubt about what was proved empty before: one more silence is the proof."""
        need = self._desk.need(self._chunk.stamps)
        return silent_before(need) if self._desk.facts.was_empty(need.gaps()) else Doubts()

    async def _ask(self, chunk: Chunk) -> None:
        """Ask once and take in what comes."""
        desk = self._desk
        self.asking = chunk
        asked = await desk.asking.chunk(chunk)
        desk.failures_in_a_row = 0
        desk.means.widths.answered(desk.series.timeframe, chunk.sessions)
        answer, proved = asked.answer, "nothing"
        try:
            proved = await self._take(chunk, answer)
        finally:
            desk.asking.record(asked, proved)
        rows = answer.bars.num_rows if isinstance(answer, Answer) else 0
        desk.means.progress.answered(desk.series, rows)
        await desk.commits.commit_when_due()

    async def _take(self, chunk: Chunk, answer: Answer | NoData) -> str:
        """Keep and settle what an answer proves; say it in a few words."""
        if isinstance(answer, NoData):
            return await self._take_silence(chunk)
        desk = self._desk
        desk.means.life.saw(desk.asking)
        desk.tries.answered()
        need = desk.need(chunk.stamps)
        question = Question(chunk, need.calendar, need.timeframe, need.now)
        settlement = settle(question, answer.bars, answer.reach)
        if answer.lacks_newest:
            return self._take_held_back(chunk, settlement)
        if settlement.earlier_only:
            if await desk.learn_sessions(chunk.stamps):
                return _OTHER_SESSIONS
            return self._believe(chunk, older_known=True)
        desk.settle(Coverage(bars=settlement.proved), settlement.bars)
        self._doubts = after_answer(desk.need(self._chunk.stamps), self._doubts, chunk)
        self._set_aside_rest(chunk.stamps)
        return f"{settlement.bars.num_rows} bars, {settlement.proved.length} settled"

    def _take_held_back(self, chunk: Chunk, settlement: Settlement) -> str:
        """Keep what came; where the gateway holds bars back, silence is no proof and no doubt."""
        self._desk.settle(Coverage(bars=settlement.proved), settlement.bars)
        left = (doubt for doubt in self._doubts.open if not doubt.interval.overlaps(chunk.stamps))
        self._doubts = Doubts(tuple(left))
        self._set_aside_rest(chunk.stamps)
        return f"{settlement.bars.num_rows} bars, the newest are held back"

    async def _take_silence(self, chunk: Chunk) -> str:
        """Take in "no data": learn where the data begin, then doubt it or believe it."""
        desk = self._desk
        if not await desk.is_alive():
            return "nothing, no sign of life"
        need = desk.need(chunk.stamps)
        if need.known_from is None or chunk.stamps.start < need.known_from:
            asked = need.gaps()
            await desk.learn_listing(asked.hull or chunk.stamps)
            if desk.need(chunk.stamps).gaps() != asked:
                return "data begin later"
        if await desk.learn_sessions(chunk.stamps):
            return _OTHER_SESSIONS
        return self._believe(chunk)

    def _believe(self, chunk: Chunk, *, older_known: bool = False) -> str:
        """Settle what has been silent often enough."""
        desk = self._desk
        need = desk.need(self._chunk.stamps)
        self._doubts = after_no_data(need, self._doubts, chunk, older_known=older_known)
        silent = self._doubts.silent
        quiet, empty = quiet_and_empty(need, silent, desk.facts.bars)
        at = _hour(desk.means.keeper.patience.market_clock())
        desk.settle(Coverage(quiet, tuple(Emptiness(part, at) for part in empty)))
        self._set_aside_rest(chunk.stamps)
        return f"{silent.length} without bars" if silent else "nothing"

    def _set_aside_rest(self, stamps: Interval) -> None:
        """Leave to another run what this request left open and no doubt asks for again."""
        self._desk.set_aside(stamps, IntervalSet(doubt.interval for doubt in self._doubts.open))


def _hour(moment: datetime) -> datetime:
    """Round down to the hour, so that proofs of one hour are one."""
    return moment.replace(minute=0, second=0, microsecond=0)
