"""What runs report of windows."""

from datetime import UTC, datetime
from typing import Any

import dagster as dg

from ktrdr_pipelines.defs.partitions import BarPartition
from ktrdr_pipelines.defs.resources import IbResource, StoreResource
from ktrdr_pipelines.defs.runs.outcome import LoadRun
from ktrdr_pipelines.defs.runs.reported_windows import AS_OF
from ktrdr_pipelines.domain.intervals import Interval, IntervalSet
from ktrdr_pipelines.domain.timeframes import Timeframe
from ktrdr_pipelines.gaps.windows import WindowState, WindowStatus


def test_events_have_the_time_of_their_status(location: Any) -> None:
    """That of a window may be hours old when its run reports it, and bars have come since."""
    year = Interval(datetime(2026, 1, 1, tzinfo=UTC), datetime(2027, 1, 1, tzinfo=UTC))
    status = WindowStatus(year, WindowState.OPEN, 100, IntervalSet())
    at = datetime(2026, 6, 12, 5, tzinfo=UTC)

    @dg.op
    def report(context: dg.OpExecutionContext, ib: IbResource, store: StoreResource) -> None:
        run = LoadRun(context, ib, store)
        run.materialize(Timeframe.D1, [(BarPartition("AAPL", "2026"), status, at)])
        run.report_growth(Timeframe.D1, [(BarPartition("MSFT", "2026"), status, at)])

    @dg.job(resource_defs=location.defs().resources)
    def reports() -> None:
        report()

    assert reports.execute_in_process(instance=location.instance).success
    records = location.instance.fetch_materializations(dg.AssetKey(["bars", "1d"]), limit=9).records
    times = [one.asset_materialization.metadata[AS_OF].value for one in records]
    assert times == [at.isoformat()] * 2
