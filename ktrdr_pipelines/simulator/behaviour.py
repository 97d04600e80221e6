"""How a gateway behaves besides answering, and a gateway that behaves so.

Not here: its socket (``server``).
"""

from dataclasses import dataclass
from pathlib import Path

from ktrdr_pipelines.simulator.clock import SimClock
from ktrdr_pipelines.simulator.faults import FaultPlan
from ktrdr_pipelines.simulator.gateway import LINGER_S, Gateway
from ktrdr_pipelines.simulator.journal import Journal
from ktrdr_pipelines.simulator.market import Market
from ktrdr_pipelines.simulator.outages import Outages
from ktrdr_pipelines.simulator.pacing import PacingMode, PacingRule, PacingRules
from ktrdr_pipelines.simulator.record import RequestLog
from ktrdr_pipelines.simulator.rules import GatewayRules
from ktrdr_pipelines.simulator.steps import DurationTable
from ktrdr_pipelines.simulator.updates import EVERY_S
from ktrdr_pipelines.simulator.variants import Variants
from ktrdr_pipelines.simulator.workers import Speed, Workers


@dataclass(frozen=True, slots=True)
class Behaviour:
    """How a gateway behaves besides answering.

    ``hold_s`` is how long the client id of a client that died stays taken; ``speed`` counts under
    soft pacing only; ``log`` is a file that events are added to. ``durations`` says which bar
    sizes a duration may be asked with, ``update_s`` how many seconds lie between updates of bars
    that are kept up to date, ``linger_s`` how long a connection that ends waits for its client to
    read the rest. ``variants`` is in what it differs from other gateways.
    """

    pacing: PacingMode = PacingMode.DOCUMENTED
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
    is_soft = behaviour.pacing is PacingMode.SOFT
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
