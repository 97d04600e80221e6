"""Manual series: automatic work loads what follows the bars the user loaded, nothing older."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import date, datetime, timedelta

import pyarrow as pa
import pytest

from ktrdr_pipelines.domain.calendars.registry import Calendars, calendar_named
from ktrdr_pipelines.domain.calendars.sessions import interval_between
from ktrdr_pipelines.domain.instruments import Backfill, Series
from ktrdr_pipelines.domain.planning.jobs import RequestedBy
from ktrdr_pipelines.domain.planning.responses import BarRequest
from ktrdr_pipelines.domain.timeframes import Timeframe
from ktrdr_pipelines.errors import GatewayError, RequestRejectedError
from ktrdr_pipelines.gaps.due_chunks import due_to_fill
from ktrdr_pipelines.gaps.index import GapIndex
from ktrdr_pipelines.store.ledger.ledger import Ledger, series_key
from ktrdr_pipelines.store.maintenance.repair import repair
from ktrdr_pipelines.sync.runner import Job
from tests.support.fake_gateway import utc
from tests.support.loading import Harness, World

RTH = "XNYS.RTH"
START = date(2024, 1, 2)
NOW = utc(2024, 6, 28, 12)


@dataclass
class Manual:
    """A manual series of hours, wanted from January on, as sensors see it."""

    harness: Harness
    series: Series

    def load(self, first: date, end: date) -> None:
        """Load session dates as a user does."""
        interval = interval_between(calendar_named(RTH), Timeframe.H1, first, end)
        assert self.harness.load(self.series, interval).is_complete

    def due(self) -> list[tuple[date, date]]:
        """Return what sensors would request now, as first and last date of each range."""
        index = GapIndex(self.harness.store, Calendars(), self.harness.gateway.gateway)
        found = index.series_gaps([self.series], self.harness.gateway.time)
        return [
            (part.start.date(), part.end.date())
            for due in due_to_fill(found, self.harness.gateway.time)
            for part in due.intervals
        ]

    def fill(self) -> None:
        """Load what is due, as a sensor's run does."""
        index = GapIndex(self.harness.store, Calendars(), self.harness.gateway.gateway)
        found = index.series_gaps([self.series], self.harness.gateway.time)
        [due] = due_to_fill(found, self.harness.gateway.time)
        self.harness.run(Job(self.series, wanted=due.intervals, requested_by=RequestedBy.SENSOR))

    def mark(self) -> datetime | None:
        """Return the timestamp from which the series is kept fresh."""
        return self.harness.ledger.kept_fresh.all().get(series_key(self.series))

    def dates(self) -> tuple[date, date, int]:
        """Return the first and last session date with bars, and their number."""
        days = self.harness.store.rows_per_session(self.series)
        return min(days), max(days), len(days)


@pytest.fixture
def manual(world: Callable[..., World]) -> Manual:
    """Return the series, with a gateway that has all of it."""
    made = world(RTH, Timeframe.H1, START, date(2024, 6, 28), now=NOW)
    instrument = replace(made.series.instrument, backfill=Backfill.MANUAL, start=START)
    return Manual(made.harness, replace(made.series, instrument=instrument))


def fails_between(first: datetime, end: datetime) -> Callable[..., pa.Table | GatewayError]:
    """Refuse requests that end inside a range."""

    def mutate(request: BarRequest, bars: pa.Table) -> pa.Table | GatewayError:
        ends_at = request.ends_at
        if ends_at is not None and first < ends_at < end:
            return RequestRejectedError(str(request), reason="refused by the test")
        return bars

    return mutate


def test_the_first_load_of_the_user_sets_the_mark(manual: Manual) -> None:
    """Neither newer nor older loads change it."""
    assert (manual.due(), manual.mark()) == ([], None)
    manual.load(date(2024, 2, 1), date(2024, 3, 1))
    mark = manual.mark()
    assert mark is not None
    assert mark.date() == date(2024, 3, 1)
    assert manual.due() == [(date(2024, 3, 1), date(2024, 6, 27))]
    manual.load(date(2024, 5, 1), date(2024, 6, 1))
    manual.load(date(2024, 1, 2), date(2024, 1, 10))
    assert manual.mark() == mark


def test_newest_part_that_is_loaded_first_leaves_the_rest_due(manual: Manual) -> None:
    """Gaps are filled newest first: those between the mark and the newest bar come later."""
    manual.load(date(2024, 2, 1), date(2024, 3, 1))
    manual.load(date(2024, 5, 1), date(2024, 6, 28))
    assert manual.due() == [(date(2024, 3, 1), date(2024, 4, 30))]
    manual.fill()
    assert manual.due() == []
    assert manual.dates() == (date(2024, 2, 1), date(2024, 6, 27), 102)


def test_range_that_fails_in_the_middle_stays_due(manual: Manual) -> None:
    """It is deferred like every failed attempt, and loaded when it is retried."""
    manual.load(date(2024, 2, 1), date(2024, 3, 1))
    manual.harness.gateway.mutate = fails_between(utc(2024, 4, 5), utc(2024, 5, 5))
    manual.fill()
    assert manual.due() == []
    assert manual.dates()[:2] == (date(2024, 2, 1), date(2024, 6, 27))
    manual.harness.gateway.mutate = None
    manual.harness.gateway.time += timedelta(minutes=6)
    assert all(date(2024, 3, 1) <= first for first, _ in manual.due())
    assert manual.due()
    manual.fill()
    assert manual.due() == []
    assert manual.dates() == (date(2024, 2, 1), date(2024, 6, 27), 102)


def test_store_of_an_earlier_version_gets_its_mark_before_it_is_filled(manual: Manual) -> None:
    """The first save records what the user had loaded, whatever it adds itself."""
    manual.load(date(2024, 2, 1), date(2024, 3, 1))
    with manual.harness.ledger.database.writing() as connection:
        connection.execute("DELETE FROM kept_fresh")
    assert manual.due() == [(date(2024, 3, 1), date(2024, 6, 27))]
    manual.load(date(2024, 6, 3), date(2024, 6, 28))
    assert manual.mark() is not None
    assert manual.due() == [(date(2024, 3, 1), date(2024, 5, 31))]


def test_repair_keeps_the_mark(manual: Manual) -> None:
    """No bar file contains it."""
    manual.load(date(2024, 2, 1), date(2024, 3, 1))
    manual.load(date(2024, 5, 1), date(2024, 6, 28))
    before = manual.mark()
    repair(manual.harness.layout, [manual.series.instrument], NOW)
    assert manual.mark() == before is not None
    assert manual.due() == [(date(2024, 3, 1), date(2024, 4, 30))]


def test_lost_mark_falls_back_to_the_newest_bar(manual: Manual) -> None:
    """Without the ledger, history that the user did not load is still not requested."""
    manual.load(date(2024, 2, 1), date(2024, 3, 1))
    manual.harness.ledger.close()
    manual.harness.layout.ledger.unlink()
    manual.harness.ledger = Ledger(manual.harness.layout.ledger)
    assert manual.mark() is None
    assert manual.due() == [(date(2024, 3, 1), date(2024, 6, 27))]
