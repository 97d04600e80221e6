"""Asking a gateway about the facts that are not certain, politely, and recording what is said.

Not here: the facts (``ib.probe_facts``), the file (``ib.capture``).
"""

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass, replace

from ktrdr_pipelines.core.pacing import RequestKind
from ktrdr_pipelines.errors import (
    ConnectionLostError,
    EntitlementError,
    GatewayError,
    GatewayRestingError,
    OutageError,
    PacingError,
)
from ktrdr_pipelines.ib.asker import Ask, Asker
from ktrdr_pipelines.ib.capture import Capture, Frame, Way
from ktrdr_pipelines.ib.clock import wall_now
from ktrdr_pipelines.ib.config import GatewayConfig
from ktrdr_pipelines.ib.connection import IbConnectionStrategy, Operation
from ktrdr_pipelines.ib.contracts import contract_for
from ktrdr_pipelines.ib.doctor import probe_currency, probe_stock
from ktrdr_pipelines.ib.gateway import GatewayConnection
from ktrdr_pipelines.ib.pacer import Pacer
from ktrdr_pipelines.ib.probe_facts import Fact, Seen, Trial
from ktrdr_pipelines.ib.probe_table import FACTS
from ktrdr_pipelines.ib.queries import HistoryQuery, paced_query
from ktrdr_pipelines.ib.questions import Topic
from ktrdr_pipelines.ib.source import GatewaySource

_ANSWERS = frozenset({"17", "88", "106"})
_HOPELESS = (ConnectionLostError, OutageError, GatewayRestingError)
_BESIDE_THE_FACT = (*_HOPELESS, PacingError, EntitlementError)
LONGEST_OUTAGE_S = 60.0
"""How long an outage of the gateway's own connections is waited for before giving up."""

_INSTRUMENTS = {one.symbol: one for one in (probe_stock(), probe_currency())}


@dataclass(frozen=True, slots=True)
class Finding:
    """What came of one fact.

    ``agrees`` is None where nothing was believed before, and where nothing is ``known`` now: the
    gateway was not asked, or what it said is not about the fact (an outage, a missing permission).
    """

    fact: Fact
    seen: str
    agrees: bool | None
    known: bool = True
    was_asked: bool = True


@dataclass(frozen=True, slots=True)
class Probe:
    """What a gateway said to all facts, and the record of it."""

    findings: tuple[Finding, ...]
    capture: Capture

    @property
    def is_whole(self) -> bool:
        """Say whether every fact was asked about."""
        return all(finding.was_asked for finding in self.findings)


async def probe(
    config: GatewayConfig,
    *,
    facts: Sequence[Fact] = FACTS,
    on_finding: Callable[[Finding], None] = lambda _: None,
    pacer: Pacer | None = None,
) -> Probe:
    """Ask about every fact, one after another, within the budget of all processes.

    ``pacer`` is that budget, closed at the end; None takes the one of the gateway.

    Raises:
        GatewayError: no connection, or not even one contract came about.
        DiskError: the state folder cannot be used.
    """
    config = replace(config, outage_s=min(config.outage_s, LONGEST_OUTAGE_S))
    frames: list[Frame] = []
    findings: list[Finding] = []
    with closing(pacer or Pacer.of(config)) as budget:
        async with _connected(config, budget) as connection:
            connection.listen(frames.append)
            began = wall_now()
            prober = _Prober(connection, budget, config, frames)
            await prober.learn_contracts()
            for fact in facts:
                findings.append(await prober.find(fact))
                on_finding(findings[-1])
            version = connection.server_version
    return Probe(tuple(findings), Capture(version, began, tuple(frames)))


@asynccontextmanager
async def _connected(config: GatewayConfig, pacer: Pacer) -> AsyncIterator[GatewayConnection]:
    strategy = IbConnectionStrategy(config, pacer=pacer)
    try:
        async with strategy.get_connection_for_operation(Operation.CLI) as connection:
            yield connection
    finally:
        await strategy.cleanup_temporary_connections()


class _Prober:
    """Asks one connection; what comes is read out of the record."""

    def __init__(
        self,
        connection: GatewayConnection,
        pacer: Pacer,
        config: GatewayConfig,
        frames: list[Frame],
    ) -> None:
        self._connection, self._frames = connection, frames
        self._source = GatewaySource(connection, pacer, config)
        self._asker = Asker(connection, pacer, config)
        self._ids: dict[str, int] = {}
        self._hopeless = ""

    async def learn_contracts(self) -> None:
        """Ask for the contracts that the facts are about.

        Raises:
            GatewayError: not one is known.
        """
        refused: GatewayError | None = None
        for symbol, instrument in _INSTRUMENTS.items():
            try:
                self._ids[symbol] = await self._source.contract_id(instrument)
            except GatewayError as error:
                refused = error
        if refused is not None and not self._ids:
            raise refused

    async def find(self, fact: Fact) -> Finding:
        """Ask about one fact, whatever comes; where no more can come, nothing is asked."""
        if fact.trial.symbol not in self._ids:
            return _unasked(fact, f"no contract of {fact.trial.symbol}")
        if self._hopeless:
            return _unasked(fact, self._hopeless)
        begun = len(self._frames)
        try:
            await self._ask(self._query(fact), fact.trial)
        except _BESIDE_THE_FACT as error:
            if isinstance(error, _HOPELESS):
                self._hopeless = error.came
            said = seen_in(self._frames[begun:])
            told = str(said) if said.codes else error.came
            return Finding(fact, told, None, known=False, was_asked=error.was_asked)
        except GatewayError:
            pass  # what came is in the record, and may be just what was expected
        return _judged(fact, seen_in(self._frames[begun:]))

    async def _ask(self, query: HistoryQuery, trial: Trial) -> None:
        is_head = trial.kind == "head"
        topic, kind = (Topic.HEAD, RequestKind.HEAD) if is_head else (Topic.BARS, RequestKind.BARS)
        ask = Ask(topic, query.asked, paced_query(query, kind), query.route)
        if is_head:
            await self._asker.ask(ask, self._connection.head(query))
        else:
            await self._asker.ask(ask, self._connection.history(query))

    def _query(self, fact: Fact) -> HistoryQuery:
        trial = fact.trial
        return HistoryQuery(
            asked=fact.name,
            contract=contract_for(_INSTRUMENTS[trial.symbol], self._ids[trial.symbol]),
            what_to_show=trial.what_to_show,
            use_rth=True,
            end=trial.end,
            duration=trial.duration,
            bar_size=trial.bar_size,
            dates=trial.dates,
        )


def _unasked(fact: Fact, why: str) -> Finding:
    return Finding(fact, why, None, known=False, was_asked=False)


def _judged(fact: Fact, seen: Seen) -> Finding:
    try:
        text, agrees = fact.judge(seen)
    except (ValueError, IndexError, OverflowError) as error:
        text, agrees = f"{seen}: cannot be read ({error})", False
    return Finding(fact, text, agrees)


def seen_in(frames: Sequence[Frame]) -> Seen:
    """Read out of a record what came for one request."""
    came = [frame.fields for frame in frames if frame.way is Way.IN and not frame.cut]
    answer = next((fields for fields in came if fields[0] in _ANSWERS), ())
    codes = [
        (int(fields[3]), fields[4]) for fields in came if fields[0] == "4" and fields[2] != "-1"
    ]
    return Seen(answer, tuple(codes))
