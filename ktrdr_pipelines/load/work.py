"""The work on one series: rounds of planning and asking until nothing more can be proved.

Not here: what is decided (``core.plan``, ``core.settle``, ``core.doubts``), how patiently the
gateway is asked (``load.keeper``), when settled bars are written (``load.commits``).
"""

import asyncio
from collections import deque
from dataclasses import dataclass
from datetime import timedelta

from ktrdr_pipelines.core.answers import Answer, NoData
from ktrdr_pipelines.core.coverage import Coverage, Emptiness
from ktrdr_pipelines.core.doubts import Doubts, after_answer, after_no_data
from ktrdr_pipelines.core.instruments import Identity
from ktrdr_pipelines.core.intervals import IntervalSet
from ktrdr_pipelines.core.plan import Chunk, Need, plan
from ktrdr_pipelines.core.settle import Question, Settlement, settle
from ktrdr_pipelines.errors import (
    ClientIdInUseError,
    EntitlementError,
    GatewayError,
    GatewayUnreachableError,
)
from ktrdr_pipelines.limits import IbLimitsRegistry
from ktrdr_pipelines.load.asking import Asking
from ktrdr_pipelines.load.claims import Claimant
from ktrdr_pipelines.load.commits import Commits
from ktrdr_pipelines.load.facts import SeriesFacts
from ktrdr_pipelines.load.keeper import SourceKeeper
from ktrdr_pipelines.load.ranges import RangeDiscovery
from ktrdr_pipelines.load.reports import Progress
from ktrdr_pipelines.store.attempts import AttemptKind
from ktrdr_pipelines.store.ledger import series_key
from ktrdr_pipelines.store.parquet import BarStore

_FAILURES_IN_A_ROW = 3
_OTHERS_S = 1.0
_RETRY_AFTER = timedelta(minutes=5)
_BLOCKED_FOR = timedelta(days=1)


@dataclass(frozen=True, slots=True)
class Means:
    """What all series of one run share: where to ask, where to save, whom to tell."""

    keeper: SourceKeeper
    store: BarStore
    claimant: Claimant
    ranges: RangeDiscovery
    progress: Progress


class SeriesWork:
    """One run over one series that has something due; made and used once, in one event loop."""

    def __init__(
        self, means: Means, facts: SeriesFacts, identity: Identity, *, tail: bool = False
    ) -> None:
        self._means = means
        self._facts = facts
        self._series = facts.series
        self._identity = identity
        self._clock = means.keeper.patience.clock
        self._doubts = Doubts()
        self._failures_in_a_row = 0
        self._refused = False
        self._stop: GatewayError | None = None
        self._is_alive = False
        self.failures: list[GatewayError] = []
        self.asking = Asking(
            means.keeper,
            means.store.ledger,
            self._series,
            contract_id=identity.contract_id,
            tail=tail,
        )
        self.commits = Commits(
            save=lambda bars, coverage: means.store.save(self._series, identity, bars, coverage),
            release=lambda stretches: means.claimant.release(self._series, stretches),
            saved=lambda: means.progress.saved(self._series),
        )

    async def run(self) -> None:
        """Ask until nothing more can be proved; what is settled is saved however it ends.

        Raises:
            GatewayUnreachableError, ClientIdInUseError: there is no gateway to ask.
            StoreError: what was answered could not be saved.
        """
        try:
            await self._refresh_listing()
            await self._rounds()
        finally:
            self.commits.commit()

    def need(self, *, everything: bool = False) -> Need:
        """State wants and facts as they stand."""
        now = self._means.keeper.now()
        return self._facts.need(now, self._clock(), everything=everything)

    # --- asking -----------------------------------------------------------------------------

    async def _rounds(self) -> None:
        while self._stop is None and (chunks := plan(self.need(), self._doubts.open)):
            self._refused = False
            self._means.progress.planned(self._series, len(chunks))
            await self._ask_all(deque(chunks))
            if self._refused:
                await self._means.keeper.patience.sleep(_OTHERS_S)
                self._facts.settle(self._means.store.coverage(self._series))
        if isinstance(self._stop, GatewayUnreachableError | ClientIdInUseError):
            raise self._stop

    async def _ask_all(self, queue: deque[Chunk]) -> None:
        """Ask for chunks, several at a time; the gateway's budget is the pacer's business."""
        workers = min(len(queue), IbLimitsRegistry.IN_FLIGHT.value)
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(workers):
                    group.create_task(self._work_off(queue))
        except ExceptionGroup as failures:
            raise failures.exceptions[0] from failures

    async def _work_off(self, queue: deque[Chunk]) -> None:
        while queue and self._stop is None:
            chunk = queue.popleft()
            rows = 0
            if self._means.claimant.claim(self._series, chunk.stamps, self._clock()):
                rows = await self._ask(chunk)
                self.commits.asked(chunk.stamps)
            else:
                self._refused = True
            self._means.progress.answered(self._series, rows)
            await self.commits.commit_when_due()

    async def _ask(self, chunk: Chunk) -> int:
        """Ask for one chunk and take in what comes; give the number of bars answered."""
        try:
            asked = await self.asking.chunk(chunk)
            answer = asked.answer
            if isinstance(answer, NoData):
                proved = await self._take_silence(chunk)
            else:
                proved = await self._take_answer(chunk, answer)
        except GatewayError as error:
            self._take_failure(chunk, error)
            return 0
        self._failures_in_a_row = 0
        self.asking.record(asked, proved)
        return 0 if isinstance(answer, NoData) else answer.bars.num_rows

    # --- taking in --------------------------------------------------------------------------

    async def _take_answer(self, chunk: Chunk, answer: Answer) -> str:
        """Keep and settle what bars prove; say it in a few words."""
        self._is_alive = True
        need = self.need()
        question = Question(chunk, need.calendar, need.timeframe, need.now)
        settlement = settle(question, answer.bars, answer.reach)
        if settlement.earlier_only:
            return await self._take_silence(chunk)
        self._settle(Coverage(bars=settlement.proved), settlement)
        self._doubts = after_answer(self.need(), self._doubts, chunk)
        self._set_aside_rest(chunk)
        return f"{settlement.bars.num_rows} bars, {settlement.proved.length} settled"

    async def _take_silence(self, chunk: Chunk) -> str:
        """Take in "no data": learn where the data begin, then doubt it or believe it."""
        await self._learn_listing()
        self._doubts = after_no_data(self.need(), self._doubts, chunk)
        empty = self._doubts.empty
        if empty and await self._alive():
            at = self._clock()
            self._settle(Coverage(empty=tuple(Emptiness(part, at) for part in empty)))
        self._set_aside_rest(chunk)
        return f"{empty.length} empty" if empty else "nothing"

    def _settle(self, coverage: Coverage, settlement: Settlement | None = None) -> None:
        self.commits.add(settlement.bars if settlement else None, coverage)
        self._facts.settle(coverage)

    def _set_aside_rest(self, chunk: Chunk) -> None:
        """Leave to another run what this chunk left open and no doubt asks for again."""
        doubted = IntervalSet(doubt.interval for doubt in self._doubts.open)
        self._facts.set_aside(self.need().gaps(chunk.stamps) - doubted)

    def _take_failure(self, chunk: Chunk, error: GatewayError) -> None:
        """Set a chunk aside that could not be had, and stop where more asking is vain."""
        self.failures.append(error)
        self._facts.set_aside(IntervalSet([chunk.stamps]))
        blocked = isinstance(error, EntitlementError)
        self._means.store.ledger.record_attempt(
            series_key(self._series),
            chunk.stamps,
            AttemptKind.BLOCKED if blocked else AttemptKind.ERROR,
            error=str(error),
            code=error.code,
            next_try_at=self._clock() + (_BLOCKED_FOR if blocked else _RETRY_AFTER),
            at=self._clock(),
        )
        self._means.progress.noted(self._series, str(error))
        self._failures_in_a_row += 1
        vain = isinstance(error, EntitlementError | GatewayUnreachableError | ClientIdInUseError)
        if vain or self._failures_in_a_row >= _FAILURES_IN_A_ROW:
            self._stop = error

    # --- listing and life -------------------------------------------------------------------

    async def _refresh_listing(self) -> None:
        """Ask anew for a known start of the data, where more than that is wanted."""
        known = self._means.ranges.known_head(self._series.instrument, self._identity.contract_id)
        if known is not None and self._facts.reaches_before(known):
            await self._learn_listing()

    async def _learn_listing(self) -> None:
        """Excuse what lies before the start of the gateway's data."""
        head = await self._means.ranges.head(
            self._means.keeper,
            self._series.instrument,
            self._identity.contract_id,
            lambda text: self._means.progress.noted(self._series, text),
        )
        self._facts.excuse_before(head)

    async def _alive(self) -> bool:
        """Say whether this contract has lately answered with bars, asking once if need be."""
        if self._is_alive or await self.asking.is_alive():
            self._is_alive = True
            return True
        self._means.progress.noted(
            self._series,
            f"the gateway has no data of {self._series.instrument} at all, so nothing is taken "
            "for proved empty: permissions may be missing, or the instrument has ended",
        )
        return False
