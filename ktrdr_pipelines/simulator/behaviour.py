"""How a gateway behaves besides answering, and a gateway that behaves so.

Not here: its socket (``server``).
"""

from dataclasses import dataclass
from pathlib import Path

from ktrdr_pipelines.errors import SimulatorError
from ktrdr_pipelines.simulator.capture import Capture
from ktrdr_pipelines.simulator.clock import SimClock
from ktrdr_pipelines.simulator.faults import Fault, FaultPlan
from ktrdr_pipelines.simulator.gateway import LINGER_S, Gateway
from ktrdr_pipelines.simulator.journal import Journal
from ktrdr_pipelines.simulator.market import Market
from ktrdr_pipelines.simulator.markets import EmptyMarket
from ktrdr_pipelines.simulator.outages import Outages
from ktrdr_pipelines.simulator.pacing import PacingMode, PacingRule, PacingRules
from ktrdr_pipelines.simulator.record import RequestLog
from ktrdr_pipelines.simulator.retelling import LONGEST_WAIT_S, Script, script_of
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
    that are kept up to date, ``longest_wait_s`` how long what a record says is waited for at most,
    ``linger_s`` how long a connection that ends waits for its client to read the rest.
    ``variants`` is in what it differs from other gateways.
    """

    pacing: PacingMode = PacingMode.DOCUMENTED
    speed: Speed = Speed()  # noqa: RUF009 - immutable
    hold_s: float = 0.0
    faults: FaultPlan | None = None
    log: Path | None = None
    durations: DurationTable = DurationTable.WIDE
    update_s: float = EVERY_S
    longest_wait_s: float = LONGEST_WAIT_S
    linger_s: float = LINGER_S
    variants: Variants = Variants()  # noqa: RUF009 - immutable


def gateway_of(
    served: Market | Capture,
    clock: SimClock,
    behaviour: Behaviour,
    outages: Outages,
    *,
    account: str,
    latency_s: float,
) -> Gateway:
    """Put a gateway together.

    Raises:
        SimulatorError: the log cannot be written; a capture is malformed, or has no such fault.
    """

    def now_s() -> float:
        return clock.now().timestamp()

    def note(rule: PacingRule, client_id: int) -> None:
        journal.note("violation", rule=rule, client_id=client_id)

    faults = behaviour.faults or FaultPlan()
    market, script = _served(served, behaviour.longest_wait_s, faults)
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
        script=script,
        linger_s=behaviour.linger_s,
        variants=behaviour.variants,
    )


def _served(
    served: Market | Capture, longest_wait_s: float, faults: FaultPlan
) -> tuple[Market, Script | None]:
    """Return the market that is answered from, or an empty one and what is answered instead."""
    if not isinstance(served, Capture):
        return served, None
    if any(rule.fault is Fault.PAST_OLDEST for rule in faults.rules):
        raise SimulatorError(
            f"replay {served.path} with the fault {Fault.PAST_OLDEST}",
            came="a record does not say which bar is the oldest",
            remedy="Take that fault out of the file, or serve a market",
        )
    return EmptyMarket(), script_of(served, longest_wait_s)
