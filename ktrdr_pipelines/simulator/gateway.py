"""What all connections of one gateway share, and what it decides for each request.

Not here: sockets (``server``, ``connection``), doing what is decided (``serving``).
"""

from dataclasses import dataclass
from datetime import datetime, timedelta

from ktrdr_pipelines.simulator.clock import SimClock
from ktrdr_pipelines.simulator.falsehoods import reaches_past_oldest
from ktrdr_pipelines.simulator.faults import (
    OUTAGES,
    Fault,
    FaultPlan,
    FaultRule,
    Met,
    Occasion,
)
from ktrdr_pipelines.simulator.journal import Journal
from ktrdr_pipelines.simulator.market import Market
from ktrdr_pipelines.simulator.messages import ContractFields, DataRequest, PlainRequest
from ktrdr_pipelines.simulator.outages import Outages
from ktrdr_pipelines.simulator.reading import Setting
from ktrdr_pipelines.simulator.record import RequestLog, record_of
from ktrdr_pipelines.simulator.replies import NO_REQUEST
from ktrdr_pipelines.simulator.rules import GatewayRules, kind_of
from ktrdr_pipelines.simulator.session import SERVER_VERSIONS
from ktrdr_pipelines.simulator.steps import DurationTable
from ktrdr_pipelines.simulator.updates import EVERY_S
from ktrdr_pipelines.simulator.variants import Variants
from ktrdr_pipelines.simulator.workers import Workers

_TIME = 49

LINGER_S = 10.0
"""How long a connection that ends waits for its client to read the rest."""


@dataclass(slots=True)
class Gateway:
    """One gateway: its market, clock and rules, what went wrong and what was asked."""

    market: Market
    clock: SimClock
    rules: GatewayRules
    log: RequestLog
    journal: Journal
    outages: Outages
    account: str
    latency_s: float
    faults: FaultPlan
    workers: Workers | None = None
    durations: DurationTable = DurationTable.WIDE
    update_s: float = EVERY_S
    linger_s: float = LINGER_S
    variants: Variants = Variants()  # noqa: RUF009 - immutable

    def setting(self, version: int) -> Setting:
        """Return what an answer depends on now."""
        now_s = int(self.clock.now().timestamp())
        return Setting(self.market, version, now_s, self.durations, self.variants)

    def told_now(self) -> datetime:
        """Return the time that clients are told."""
        now = self.clock.now()
        return now + timedelta(seconds=self.faults.clock_off_s(now))

    def recorded(self, request: DataRequest, client_id: int) -> int:
        """Write down that a request came, and return its place."""
        now, kind = self.clock.now(), kind_of(request)
        return self.log.add(record_of(request, client_id=client_id, kind=kind, received=now))

    def fault_of(self, request: DataRequest) -> FaultRule | None:
        """Return the fault that a request meets; one of the whole gateway begins here."""
        met = Met(
            Occasion(kind_of(request)),
            _names(request.contract),
            self.clock.now(),
            is_past_oldest=self._is_past_oldest(request),
        )
        rule = self._chosen(met, request.request_id)
        if rule is None or rule.fault not in OUTAGES:
            return rule
        self.outages.begin(rule)
        return None

    def fault_of_connection(self) -> FaultRule | None:
        """Return the fault that a new connection meets."""
        return self._chosen(Met(Occasion.CONNECT, now=self.clock.now()))

    def is_deaf(self, request: PlainRequest) -> bool:
        """Say whether a plain request stays without an answer."""
        if self.outages.is_total:
            return True
        if request.type_id != _TIME:
            return False
        rule = self._chosen(Met(Occasion.TIME, now=self.clock.now()))
        return rule is not None and rule.fault is Fault.SILENCE

    def _chosen(self, met: Met, request_id: int = NO_REQUEST) -> FaultRule | None:
        rule = self.faults.choose(met)
        if rule is not None:
            self.journal.note("fault", fault=rule.fault, kind=met.occasion, request_id=request_id)
        return rule

    def _is_past_oldest(self, request: DataRequest) -> bool:
        """Say whether a request reaches past the oldest bar, where a fault wants to know."""
        if not any(rule.fault is Fault.PAST_OLDEST for rule in self.faults.rules):
            return False
        return reaches_past_oldest(self.setting(SERVER_VERSIONS[1]), request)


def _names(contract: ContractFields) -> frozenset[str]:
    """Return what an instrument may be called in a file of faults: AAPL, EUR, EURUSD, ESZ3."""
    pair = contract.symbol + contract.currency
    return frozenset({contract.symbol, contract.local_symbol, pair} - {""})
