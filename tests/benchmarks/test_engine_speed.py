"""CPU from a received response to Parquet and ledger, against a yardstick of the same run.

The yardstick is what no engine can do without: hold the same bars as Arrow tables, write them to
one Parquet file, and insert a row a request into SQLite. Both sides count the CPU of the process,
all threads, so that the ratio is about the same on slow, busy and fast machines.
"""

import asyncio
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from ktrdr_pipelines.domain.bars import bars_between, with_basis
from ktrdr_pipelines.domain.calendars.registry import calendar_named
from ktrdr_pipelines.domain.calendars.sessions import interval_between
from ktrdr_pipelines.domain.instruments import Series
from ktrdr_pipelines.domain.intervals import IntervalSet
from ktrdr_pipelines.domain.planning.responses import (
    BarRequest,
    NoData,
    OnSent,
    Response,
    ignore_sent,
)
from ktrdr_pipelines.domain.timeframes import Timeframe
from ktrdr_pipelines.store.layout import create_store
from ktrdr_pipelines.sync.engine.source_session import RetryPolicy
from ktrdr_pipelines.sync.runner import Job, LoadManager
from tests.support.fake_gateway import FakeGateway, dense_keys, stock, true_bars_of

RTH = "XNYS.RTH"
FIRST, END = date(2024, 1, 1), date(2024, 7, 1)
MOST_RATIO = 20.0
"""Measured: 10, mostly Python around arrays of 390 bars; 25 when every step of a response read the
ledger and the state anew."""


@dataclass
class PreparedGateway(FakeGateway):
    """Returns responses that were made before, at once."""

    prepared: dict[BarRequest, pa.Table] = field(default_factory=dict)

    async def bars(self, request: BarRequest, *, sent: OnSent = ignore_sent) -> Response | NoData:
        sent()
        await asyncio.sleep(0)
        self.requests.append(request)
        if request not in self.prepared:
            self.prepared[request] = self.unmutated(request).combine_chunks()
        bars = self.prepared[request]
        return Response(request, bars, None) if bars.num_rows else NoData(request, "no data")


def _cpu_s(act: Callable[[], object]) -> float:
    before = time.process_time()
    act()
    return time.process_time() - before


def test_a_response_of_one_day_of_minutes_costs_little_cpu(tmp_path: Path) -> None:
    """Half a year of minutes is loaded by one request a day, into a new store."""
    calendar, series = calendar_named(RTH), Series(stock(), Timeframe.M1)
    true = true_bars_of(dense_keys(RTH, Timeframe.M1, FIRST, END), Timeframe.M1, calendar)
    wanted = interval_between(calendar, Timeframe.M1, FIRST, END)
    gateway = PreparedGateway(
        {(series.symbol, Timeframe.M1): true}, datetime(2026, 1, 3, tzinfo=UTC)
    )

    def load(number: int) -> None:
        manager = LoadManager(
            create_store(tmp_path / str(number)),
            gateway.open,
            gateway.gateway,
            RetryPolicy(clock=gateway.now),
        )
        gateway.requests.clear()
        [report] = asyncio.run(manager.run([Job(series, wanted=IntervalSet([wanted]))]))
        assert report.added == true.bars.num_rows
        assert not report.unexplained

    def write(number: int) -> None:
        days = calendar.sessions(FIRST, END)
        tables = [bars_between(true.bars, one.opens_at, one.closes_at) for one in days]
        whole = with_basis(pa.concat_tables(tables), 0)
        pq.write_table(whole, tmp_path / f"{number}.parquet", compression="zstd")
        with closing(sqlite3.connect(tmp_path / f"{number}.sqlite")) as database:
            database.execute("CREATE TABLE requests (at, rows)")
            for one in tables:
                database.execute("INSERT INTO requests VALUES (?, ?)", (0, one.num_rows))
            database.commit()

    load(0)  # prepares the responses, and imports what is imported on first use
    rounds = [(_cpu_s(partial(write, n)), _cpu_s(partial(load, n))) for n in (1, 2, 3)]
    yardstick_s, load_s = (min(column) for column in zip(*rounds, strict=True))
    requests = len(gateway.requests)
    assert requests == len(calendar.sessions(FIRST, END))
    found = f"{load_s / requests * 1e3:.2f} ms a request, {load_s / yardstick_s:.1f} yardsticks"
    assert load_s < MOST_RATIO * yardstick_s, found
