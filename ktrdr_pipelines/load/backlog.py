"""The backlog: all that sensors will ask for, and what that costs, before it is loaded.

Not here: what is due now (``load.filling``), the cost of a request (``load.estimates``).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from ktrdr_pipelines.ib.config import GatewayConfig
from ktrdr_pipelines.load.estimates import estimate
from ktrdr_pipelines.load.filling import backlog_of, wanted_gaps
from ktrdr_pipelines.load.gapbook import GapBook, SeriesGaps
from ktrdr_pipelines.load.rates import measured_rates

BIG_BARS = 500_000
"""Missing bars from which on a backlog is announced: more than a day of many symbols."""


@dataclass(frozen=True, slots=True)
class Backlog:
    """What sensors will ask for: series, and bars at most."""

    series: int
    bars: int

    @property
    def is_big(self) -> bool:
        """Say whether a person should know before it is loaded."""
        return self.bars >= BIG_BARS


def measured_backlog(found: Sequence[SeriesGaps]) -> Backlog:
    """Count the backlog; cheap, as the gaps know their bars."""
    wanted = [gaps for one in found if (gaps := wanted_gaps(one))]
    return Backlog(len(wanted), sum(gap.bars for gaps in wanted for gap in gaps))


def backlog_plan(
    book: GapBook, found: Sequence[SeriesGaps], config: GatewayConfig, now: datetime
) -> str:
    """Say in one line what loading the backlog takes: requests, bars, bytes, time."""
    rates = measured_rates(book.store.ledger, config.gateway, conservative=config.conservative)
    plan = estimate(backlog_of(found), book.calendars, rates=rates, now=now)
    return (
        f"a backlog of {len(plan.parts)} series is loaded from now on: {plan.summary} "
        f"({plan.basis}); `backfill: manual` in universe.yaml leaves it to you"
    )
