"""A session's short first bar that stands alone before covered ones."""

from collections.abc import Callable
from datetime import date

import pyarrow as pa
import pytest

from ktrdr_pipelines.domain.planning.responses import BarRequest
from ktrdr_pipelines.domain.timeframes import Timeframe
from tests.support.loading import World


@pytest.mark.parametrize("timeframe", [Timeframe.H1, Timeframe.H4])
def test_a_short_first_bar_alone_is_covered(
    world: Callable[..., World], timeframe: Timeframe
) -> None:
    """Where the bars after it are covered, 09:30 to 10:00 needs no next bar to be whole."""
    made = world("XNYS.RTH", timeframe, date(2024, 6, 4), date(2024, 6, 5))
    first = made.bench.truth(made.series).bars["ts"].to_pylist()
    opening = next(moment for moment in first if moment >= made.wanted.start)

    requests = iter(range(100))

    def without_opening_at_first(_: BarRequest, bars: pa.Table) -> pa.Table:
        is_first = next(requests) == 0
        later = [not is_first or moment > opening for moment in bars["ts"].to_pylist()]
        return bars.filter(pa.array(later))

    made.bench.gateway.twist = without_opening_at_first
    report = made.load()
    assert report.is_complete, report.summary
    assert report.requests == 2
    made.check_complete()
