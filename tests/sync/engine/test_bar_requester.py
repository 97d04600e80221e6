"""How the series of a run share the number of requests that may be open at once."""

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from datetime import date, timedelta
from pathlib import Path

from ktrdr_pipelines.domain.calendars.registry import calendar_named
from ktrdr_pipelines.domain.calendars.sessions import interval_between
from ktrdr_pipelines.domain.instruments import Series
from ktrdr_pipelines.domain.intervals import IntervalSet
from ktrdr_pipelines.domain.timeframes import Timeframe
from ktrdr_pipelines.store.layout import create_store
from ktrdr_pipelines.sync.engine.bar_requester import SharedConcurrency
from ktrdr_pipelines.sync.runner import Job
from tests.support.fake_gateway import FakeGateway, dense_keys, stock, true_bars_of
from tests.support.loading import Harness

RTH = "XNYS.RTH"
MAY = date(2024, 5, 1), date(2024, 6, 1)


def test_series_that_began_first_have_the_concurrency_first() -> None:
    """What they do not need is left to the next, who waits where nothing is."""

    async def main() -> None:
        shared = SharedConcurrency(lambda: 4)
        first, second, third = (shared.join() for _ in range(3))
        first.need(4)
        assert (first.most, second.most) == (6, 2)
        second.need(2)
        assert third.most == 0
        waiting = asyncio.create_task(third.admitted())
        await asyncio.sleep(0)
        assert not waiting.done()
        first.need(3)
        await waiting
        assert third.most == 1
        first.leave()
        assert (second.most, third.most) == (6, 4)

    asyncio.run(main())


def test_several_series_are_requested_one_after_the_other(
    folders: Iterator[Path],
) -> None:
    """Nearly all of the first is requested before the last one is begun; all are complete."""
    calendar = calendar_named(RTH)
    true = true_bars_of(dense_keys(RTH, Timeframe.M1, *MAY), Timeframe.M1, calendar)
    wanted = interval_between(calendar, Timeframe.M1, *MAY)
    stocks = [replace(stock(f"S{number}"), start=MAY[0]) for number in range(4)]
    gateway = FakeGateway(
        {(one.symbol, Timeframe.M1): true for one in stocks},
        wanted.end + timedelta(days=400),
        concurrency=2,
    )
    made = Harness(create_store(next(folders)), gateway)
    jobs = [Job(Series(one, Timeframe.M1), wanted=IntervalSet([wanted])) for one in stocks]
    for report in made.run(*jobs):
        assert not report.unexplained
        assert report.added == true.bars.num_rows
    symbols = [request.series.symbol for request in gateway.requests]
    sessions = len(calendar.sessions(*MAY))
    assert symbols[:sessions].count("S0") >= sessions // 2
    assert "S3" not in symbols[:sessions]
