"""The state that all connections of a simulated gateway share, its behaviour and its clock.

``gateway_of`` builds a ``Gateway`` from a ``Behaviour``; the gateway selects the fault of each
request. ``SimClock`` is the only reader of the machine's time in the simulator.

Not here: client ids, open requests and pacing (``requests.request_limits``), and the socket
(``server``).
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
from ktrdr_pipelines.simulator.protocol.messages import DataRequest, PlainRequest
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
    """A clock that starts at a given moment, and runs at real speed or is fixed.

    Args:
        now: the start, with a time zone; None is the machine's time.
        runs: whether the clock advances.

    Raises:
        ValueError: the start has no time zone.
    """

    def __init__(self, now: datetime | None = None, *, runs: bool = True) -> None:
        self._runs = runs
        self.set(now if now is not None else datetime.now(UTC))

    def __repr__(self) -> str:
        state = "running" if self._runs else "standing"
        return f"SimClock({self.now().isoformat(timespec='seconds')}, {state})"

    def set(self, now: datetime) -> None:
        """Set the clock to a moment.

        Raises:
            ValueError: the moment has no time zone.
        """
        if now.tzinfo is None:
            raise ValueError(f"now={now.isoformat()} has no time zone")
        self._origin = now.astimezone(UTC), time.monotonic()

    def now(self) -> datetime:
        """Return the present moment in UTC."""
        start, set_at = self._origin
        return start + timedelta(seconds=time.monotonic() - set_at) if self._runs else start


_TIME = 49

LINGER_S = 10.0
"""The seconds that a closing connection waits for its client to read the rest."""


@dataclass(frozen=True, slots=True)
class Behaviour:
    """How a gateway behaves, apart from the content of its responses.

    Attributes:
        pacing: which pacing rules hold.
        speed: how fast it works; applies under soft pacing only.
        hold_s: seconds that the id of a client stays in use after its connection died.
        faults: its faults; None is none.
        log: the file to which events are appended; None writes nothing.
        durations: which bar sizes fit a duration.
        update_s: seconds between updates of live bars.
        linger_s: seconds that a closing connection waits for its client to read the rest.
        variants: how it differs from other gateways.
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


@dataclass(slots=True)
class Gateway:
    """One gateway: its market, clock, rules and faults, and the log of its requests."""

    market: Market
    clock: SimClock
    rules: GatewayRules
    behaviour: Behaviour
    log: RequestLog
    journal: Journal
    outages: Outages
    account: str
    latency_s: float
    faults: FaultPlan
    workers: Workers | None = None

    def setting(self, version: int) -> Setting:
        """Return what a response depends on, as of now."""
        now_s = int(self.clock.now().timestamp())
        durations, variants = self.behaviour.durations, self.behaviour.variants
        return Setting(self.market, version, now_s, durations, variants)

    def announced_now(self) -> datetime:
        """Return the time that the gateway states to clients, which a fault may shift."""
        now = self.clock.now()
        return now + timedelta(seconds=self.faults.clock_off_s(now))

    def recorded(self, request: DataRequest, client_id: int) -> int:
        """Log a request as received, and return its number in the log."""
        now, kind = self.clock.now(), kind_of(request)
        return self.log.add(record_of(request, client_id=client_id, kind=kind, received=now))

    def fault_of(self, request: DataRequest) -> FaultRule | None:
        """Return the fault of a request, or start the outage that it triggers and return None."""
        contract = request.contract
        # The names of an instrument in a fault file: AAPL, EUR, EURUSD, ESZ3.
        pair = contract.symbol + contract.currency
        names = frozenset({contract.symbol, contract.local_symbol, pair} - {""})
        met = Met(
            Occasion(kind_of(request)),
            names,
            self.clock.now(),
            is_past_oldest=self._is_past_oldest(request),
        )
        rule = self._chosen(met, request.request_id)
        if rule is None or rule.fault not in OUTAGES:
            return rule
        self.outages.begin(rule)
        return None

    def fault_of_connection(self) -> FaultRule | None:
        """Return the fault of a new connection."""
        return self._chosen(Met(Occasion.CONNECT, now=self.clock.now()))

    def ignores(self, request: PlainRequest) -> bool:
        """Return whether a plain request gets no response."""
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
        """Return whether a request reaches past the oldest bar; False if no fault depends on it."""
        if not any(rule.fault is Fault.PAST_OLDEST for rule in self.faults.rules):
            return False
        return reaches_past_oldest(self.setting(SERVER_VERSIONS[1]), request)


def gateway_of(
    market: Market,
    clock: SimClock,
    behaviour: Behaviour,
    outages: Outages,
    *,
    account: str,
    latency_s: float,
) -> Gateway:
    """Build a gateway.

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
        behaviour=behaviour,
        log=RequestLog(journal.note_request),
        journal=journal,
        outages=outages,
        account=account,
        latency_s=latency_s,
        faults=faults,
        workers=Workers(behaviour.speed, now_s) if is_soft else None,
    )
