"""What all connections of a simulated gateway share, and how it behaves.

How a gateway behaves besides answering, and a gateway that behaves so.

The simulator's now: one settable clock, the only reader of the machine's time.

What all connections of one gateway share, and what it decides for each request.
"""

import time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from ktrdr_pipelines.simulator.faults.effects import Outages, reaches_past_oldest
from ktrdr_pipelines.simulator.faults.faults import (
    OUTAGES,
    Fault,
    FaultPlan,
    FaultRule,
    Met,
    Occasion,
)
from ktrdr_pipelines.simulator.market.market import Market
from ktrdr_pipelines.simulator.protocol.client_session import SERVER_VERSIONS
from ktrdr_pipelines.simulator.protocol.messages import ContractFields, DataRequest, PlainRequest
from ktrdr_pipelines.simulator.protocol.replies import NO_REQUEST
from ktrdr_pipelines.simulator.request_log import Journal, RequestLog, record_of
from ktrdr_pipelines.simulator.requests.durations import DurationTable
from ktrdr_pipelines.simulator.requests.live_updates import EVERY_S
from ktrdr_pipelines.simulator.requests.pacing_rules import (
    PacingRule,
    PacingRules,
    SimulatedPacing,
    Speed,
    Workers,
)
from ktrdr_pipelines.simulator.requests.request_limits import GatewayRules, kind_of
from ktrdr_pipelines.simulator.requests.validation import Setting
from ktrdr_pipelines.simulator.variants import Variants


class SimClock:
    """A clock that starts at a given moment, and runs on at real speed or stands still.

    Args:
        now: where it starts, with a zone; None is the machine's own time.
        runs: whether it goes on from there.
    """

    def __init__(self, now: datetime | None = None, *, runs: bool = True) -> None:
        self._runs = runs
        self.set(now if now is not None else datetime.now(UTC))

    def __repr__(self) -> str:
        state = "running" if self._runs else "standing"
        return f"SimClock({self.now().isoformat(timespec='seconds')}, {state})"

    def set(self, now: datetime) -> None:
        """Move the clock to a moment.

        Raises:
            ValueError: the moment has no zone.
        """
        if now.tzinfo is None:
            raise ValueError(f"now={now.isoformat()} has no zone")
        self._origin = now.astimezone(UTC), time.monotonic()

    def now(self) -> datetime:
        """Return the present moment in UTC."""
        start, set_at = self._origin
        return start + timedelta(seconds=time.monotonic() - set_at) if self._runs else start


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
        return rule is not None and rule.fault is Fault.NO_RESPONSE

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


@dataclass(frozen=True, slots=True)
class Behaviour:
    """How a gateway behaves besides answering.

    ``hold_s`` is how long the client id of a client that died stays taken; ``speed`` counts under
    soft pacing only; ``log`` is a file that events are added to. ``durations`` says which bar
    sizes a duration may be asked with, ``update_s`` how many seconds lie between updates of bars
    that are kept up to date, ``linger_s`` how long a connection that ends waits for its client to
    read the rest. ``variants`` is in what it differs from other gateways.
    """

    pacing: SimulatedPacing = SimulatedPacing.DOCUMENTED
    speed: Speed = Speed()  # noqa: RUF009 - immutable
    hold_s: float = 0.0
    faults: FaultPlan | None = None
    log: Path | None = None
    durations: DurationTable = DurationTable.WIDE
    update_s: float = EVERY_S
    linger_s: float = LINGER_S
    variants: Variants = Variants()  # noqa: RUF009 - immutable


def gateway_of(
    market: Market,
    clock: SimClock,
    behaviour: Behaviour,
    outages: Outages,
    *,
    account: str,
    latency_s: float,
) -> Gateway:
    """Put a gateway together.

    Raises:
        SimulatorError: the log cannot be written.
    """

    def now_s() -> float:
        return clock.now().timestamp()

    def note(rule: PacingRule, client_id: int) -> None:
        journal.note("violation", rule=rule, client_id=client_id)

    faults = behaviour.faults or FaultPlan()
    journal = Journal(behaviour.log, clock.now)
    pacing = PacingRules(behaviour.pacing, now_s)
    is_soft = behaviour.pacing is SimulatedPacing.SOFT
    return Gateway(
        market=market,
        clock=clock,
        rules=GatewayRules(now_s, behaviour.hold_s, pacing, on_violation=note),
        log=RequestLog(journal.note_request),
        journal=journal,
        outages=outages,
        account=account,
        latency_s=latency_s,
        faults=faults,
        workers=Workers(behaviour.speed, now_s) if is_soft else None,
        durations=behaviour.durations,
        update_s=behaviour.update_s,
        linger_s=behaviour.linger_s,
        variants=behaviour.variants,
    )
