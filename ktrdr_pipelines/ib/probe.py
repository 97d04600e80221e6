"""Asking a gateway about the facts that are not certain, politely, and recording what is said.

Not here: the facts (``ib.probe_facts``), the file (``ib.capture``).
"""

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, closing, suppress
from dataclasses import dataclass

from ktrdr_pipelines.core.pacing import RequestKind
from ktrdr_pipelines.errors import GatewayError
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
from ktrdr_pipelines.ib.source import GatewaySource

_ANSWERS = frozenset({"17", "88", "106"})
_HOLD_FACTOR = 1.5
_INSTRUMENTS = {one.symbol: one for one in (probe_stock(), probe_currency())}


@dataclass(frozen=True, slots=True)
class Finding:
    """What came of one fact.

    ``agrees`` is None where nothing was believed before, or where the gateway was not asked.
    """

    fact: Fact
    seen: str
    agrees: bool | None
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
        GatewayError: no connection, or not even a contract came about.
        DiskError: the state folder cannot be used.
    """
    frames: list[Frame] = []
    findings: list[Finding] = []
    began = wall_now()
    with closing(pacer or Pacer.of(config)) as budget:
        async with _connected(config) as connection:
            connection.listen(frames.append)
            source = GatewaySource(connection, budget, config)
            prober = _Prober(connection, budget, config, frames)
            for symbol, instrument in _INSTRUMENTS.items():
                prober.ids[symbol] = await source.contract_id(instrument)
            for fact in facts:
                findings.append(await prober.find(fact))
                on_finding(findings[-1])
            version = connection.server_version
    return Probe(tuple(findings), Capture(version, began, tuple(frames)))


@asynccontextmanager
async def _connected(config: GatewayConfig) -> AsyncIterator[GatewayConnection]:
    strategy = IbConnectionStrategy(config)
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
        self._connection, self._pacer, self._frames = connection, pacer, frames
        self._hold_s = config.timeout_s * _HOLD_FACTOR
        self.ids: dict[str, int] = {}

    async def find(self, fact: Fact) -> Finding:
        """Ask about one fact, whatever comes."""
        if not self._connection.is_up:
            return Finding(fact, "the connection is gone", None, was_asked=False)
        begun = len(self._frames)
        with suppress(GatewayError):
            await self._ask(self._query(fact), fact.trial)
        seen = seen_in(self._frames[begun:])
        try:
            text, agrees = fact.judge(seen)
        except (ValueError, IndexError, OverflowError) as error:
            text, agrees = f"{seen}: cannot be read ({error})", False
        return Finding(fact, text, agrees)

    async def _ask(self, query: HistoryQuery, trial: Trial) -> None:
        """Ask; a head or a refusal that comes at once still takes its place in the budget."""
        is_head = trial.kind == "head"
        send = self._connection.head if is_head else self._connection.history
        kind = RequestKind.HEAD if is_head else RequestKind.BARS
        async with self._pacer.slot(paced_query(query, kind), hold_s=self._hold_s) as slot:
            try:
                await send(query)
            finally:
                slot.release()

    def _query(self, fact: Fact) -> HistoryQuery:
        trial = fact.trial
        return HistoryQuery(
            asked=fact.name,
            contract=contract_for(_INSTRUMENTS[trial.symbol], self.ids[trial.symbol]),
            what_to_show=trial.what_to_show,
            use_rth=True,
            end=trial.end,
            duration=trial.duration,
            bar_size=trial.bar_size,
            dates=trial.dates,
        )


def seen_in(frames: Sequence[Frame]) -> Seen:
    """Read out of a record what came for one request."""
    came = [frame.fields for frame in frames if frame.way is Way.IN and not frame.cut]
    answer = next((fields for fields in came if fields[0] in _ANSWERS), ())
    codes = [
        (int(fields[3]), fields[4]) for fields in came if fields[0] == "4" and fields[2] != "-1"
    ]
    return Seen(answer, tuple(codes))
