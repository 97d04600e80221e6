"""How a connection is, and the gateway's clock as it was last seen.

Not here: asking for the time (``ib.gateway``).
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

from ktrdr_pipelines.core.breaker import BreakerState
from ktrdr_pipelines.ib.clock import boot_time_s
from ktrdr_pipelines.ib.notes import Farm
from ktrdr_pipelines.ib.pacer_memory import Vitals

CLOCK_REFRESH_S = 600.0
"""How old the last sight of the gateway's clock may be before it is asked again."""


_END_OF_CLOCKS_S = 4_102_444_800  # 2100


@dataclass(frozen=True, slots=True)
class Health:
    """How a connection is: a round trip's time (None: no answer) and what is known to be wrong.

    ``last_answer_age_s`` is the age of the last answer about data (None: there was none);
    ``clock_offset_s`` says how far the gateway's clock is ahead of this machine's, to a second.
    ``breaker`` is what all processes think of the gateway, ``places`` how many requests for bars
    they may have in flight together; all of them pause for ``paused_s`` more after a violation.
    """

    gateway: str
    connected: bool
    round_trip_s: float | None
    last_answer_age_s: float | None
    clock_offset_s: float
    troubles: tuple[str, ...]
    farms: tuple[Farm, ...] = ()
    breaker: BreakerState = BreakerState.CLOSED
    places: int | None = None
    paused_s: float = 0.0

    @property
    def is_good(self) -> bool:
        """Say whether the gateway answers and knows of no trouble."""
        return self.connected and self.round_trip_s is not None and not self.troubles


def with_vitals(health: Health, vitals: Vitals) -> Health:
    """Add what all processes know of the gateway to what one connection sees."""
    age_s = boot_time_s() - vitals.answered_at if vitals.answered_at else None
    return replace(
        health,
        last_answer_age_s=health.last_answer_age_s if age_s is None else age_s,
        breaker=vitals.breaker.state,
        places=vitals.places,
        paused_s=vitals.paused_s,
    )


class GatewayClock:
    """The gateway's clock, carried on by this machine's since it was last seen.

    The gateway tells whole seconds, cut off, so this clock is never ahead of it.
    """

    def __init__(self, clock: Callable[[], float] = boot_time_s) -> None:
        self._clock = clock
        self._epoch_s, self._seen_at_s = 0, clock()

    def see(self, epoch_s: int) -> None:
        """Take what the gateway says now.

        Raises:
            ValueError: that is no time of a clock.
        """
        if not 0 < epoch_s < _END_OF_CLOCKS_S:
            raise ValueError(f"a clock at {epoch_s} s")
        self._epoch_s, self._seen_at_s = epoch_s, self._clock()

    def now(self) -> datetime:
        """Give the gateway's time."""
        passed_s = self._clock() - self._seen_at_s
        return datetime.fromtimestamp(self._epoch_s, UTC) + timedelta(seconds=passed_s)

    @property
    def is_stale(self) -> bool:
        """Say whether it should be looked at again."""
        return self._clock() - self._seen_at_s > CLOCK_REFRESH_S
