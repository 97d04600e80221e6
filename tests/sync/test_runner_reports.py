"""What a report says of ranges without bars and of sparse sessions, beside the gap book."""

from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta

import pyarrow as pa
import pyarrow.compute as pc

from ktrdr_pipelines.domain.calendars.registry import calendar_named
from ktrdr_pipelines.domain.intervals import Interval, IntervalSet
from ktrdr_pipelines.domain.planning.gaps import GapReason
from ktrdr_pipelines.domain.planning.jobs import Job, RequestedBy
from ktrdr_pipelines.domain.planning.responses import BarRequest, NoData
from ktrdr_pipelines.domain.timeframes import Timeframe
from ktrdr_pipelines.gaps.index import GapIndex
from tests.support.fake_gateway import NOT_ANSWERED
from tests.support.loading import World

MakeWorld = Callable[..., World]
RTH = "XNYS.RTH"
DAY = date(2024, 6, 11)


def gaps_of(made: World) -> list[tuple[GapReason, Interval, datetime | None]]:
    """Return what the gap book says of the series."""
    bench = made.bench
    index = GapIndex(bench.store, bench.ledger.calendars(), bench.gateway.gateway)
    (found,) = index.series_gaps([made.series], bench.gateway.time)
    return [
        (gap.reason, gap.interval, gap.next_try_at)
        for gap in found.gaps
        if made.wanted.overlaps(gap.interval)
    ]


def session() -> Interval:
    """Return the timestamps of the session that goes wrong."""
    (one,) = calendar_named(RTH).sessions(DAY, DAY + timedelta(days=1))
    return Interval(one.opens_at, one.closes_at)


def made_of(world: MakeWorld) -> World:
    """Make three weeks of hours."""
    now = datetime(2024, 7, 1, 15, tzinfo=UTC)
    return world(RTH, Timeframe.H1, date(2024, 5, 20), date(2024, 6, 22), now=now)


def no_data(request: BarRequest, bars: pa.Table) -> pa.Table | NoData:
    """Return no data for hours of the newest week."""
    if request.series.timeframe is Timeframe.H1 and request.ends_at > session().start:
        return NoData(request, NOT_ANSWERED)
    return bars


def test_ranges_without_bars_are_unconfirmed_until_a_time(world: MakeWorld) -> None:
    """The report names them and the time; so does the gap book, and a load that asks nothing."""
    made = made_of(world)
    made.bench.gateway.twist = no_data
    report = made.load()
    assert not report.is_complete
    assert report.unconfirmed
    assert report.unexplained.covers(session())
    assert report.unconfirmed.covers(session())
    assert report.confirmed_at is not None
    later = report.confirmed_at - made.bench.gateway.time
    assert timedelta(minutes=14) < later < timedelta(days=2)
    told = [one for one in gaps_of(made) if session().start in one[1]]
    assert [reason for reason, _, _ in told] in ([GapReason.UNCONFIRMED], [GapReason.CONTRADICTED])
    assert told[0][2] == report.confirmed_at
    asked = made.bench.asked
    job = Job(made.series, wanted=IntervalSet([made.wanted]), requested_by=RequestedBy.SENSOR)
    (again,) = made.bench.run(job)
    assert made.bench.asked == asked
    assert (again.confirmed_at, again.unconfirmed) == (report.confirmed_at, report.unconfirmed)


def test_a_complete_load_confirms_nothing(world: MakeWorld) -> None:
    """Without a range without bars there is no time to wait for."""
    report = made_of(world).load()
    assert report.is_complete
    assert (report.confirmed_at, report.unconfirmed) == (None, IntervalSet())


def test_a_sparse_session_reaches_the_gap_book_with_its_time(world: MakeWorld) -> None:
    """The session is covered, counts as missing, and says when it is requested once more."""
    made = made_of(world)

    def thin(request: BarRequest, bars: pa.Table) -> pa.Table:
        if request.series.timeframe is not Timeframe.H1:
            return bars
        of_day = pc.equal(bars["session_date"], pa.scalar(DAY))
        few = bars.filter(of_day)
        ends = pa.concat_tables([few.slice(0, 1), few.slice(max(few.num_rows - 1, 1))])
        return pa.concat_tables([bars.filter(pc.invert(of_day)), ends]).sort_by("ts")

    made.bench.gateway.twist = thin
    report = made.load()
    assert [part.start.date() for part in report.sparse] == [DAY]
    assert not report.is_complete
    ((reason, interval, due),) = gaps_of(made)
    assert (reason, interval) == (GapReason.SPARSE, session())
    assert due is not None
    assert due >= made.bench.gateway.time + timedelta(minutes=14)
