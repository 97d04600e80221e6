"""Manual series: automatic work brings what came after the bars of a person, and nothing older."""

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
    """A manual series of hours, wanted from January on, and how sensors see it."""

    harness: Harness
    series: Series

    def by_hand(self, first: date, end: date) -> None:
        """Load session dates as a person does."""
        interval = interval_between(calendar_named(RTH), Timeframe.H1, first, end)
        assert self.harness.load(self.series, interval).is_complete

    def due(self) -> list[tuple[date, date]]:
        """Give the months that sensors would ask for now, as first and last date of each range."""
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
        """Give from where on the series is kept fresh."""
        return self.harness.ledger.kept_fresh.all().get(series_key(self.series))

    def dates(self) -> tuple[date, date, int]:
        """Give the first and last session date held, and how many there are."""
        days = self.harness.store.rows_per_session(self.series)
        return min(days), max(days), len(days)


@pytest.fixture
def manual(world: Callable[..., World]) -> Manual:
    """Make the series over a gateway that has all of it."""
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


def test_what_a_person_loads_sets_the_mark_once(manual: Manual) -> None:
    """Neither newer nor older loads move it."""
    assert (manual.due(), manual.mark()) == ([], None)
    manual.by_hand(date(2024, 2, 1), date(2024, 3, 1))
    mark = manual.mark()
    assert mark is not None
    assert mark.date() == date(2024, 3, 1)
    assert manual.due() == [(date(2024, 3, 1), date(2024, 6, 27))]
    manual.by_hand(date(2024, 5, 1), date(2024, 6, 1))
    manual.by_hand(date(2024, 1, 2), date(2024, 1, 10))
    assert manual.mark() == mark


def test_newest_part_that_is_loaded_first_leaves_the_rest_due(manual: Manual) -> None:
    """Filling goes newest first: what lies between the mark and the newest bar comes later."""
    manual.by_hand(date(2024, 2, 1), date(2024, 3, 1))
    manual.by_hand(date(2024, 5, 1), date(2024, 6, 28))
    assert manual.due() == [(date(2024, 3, 1), date(2024, 4, 30))]
    manual.fill()
    assert manual.due() == []
    assert manual.dates() == (date(2024, 2, 1), date(2024, 6, 27), 102)


def test_range_that_fails_in_the_middle_stays_due(manual: Manual) -> None:
    """It is deferred like every failed attempt, and comes when it is tried again."""
    manual.by_hand(date(2024, 2, 1), date(2024, 3, 1))
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
    """The first save finds what the person had loaded, whatever it adds itself."""
    manual.by_hand(date(2024, 2, 1), date(2024, 3, 1))
    with manual.harness.ledger.database.writing() as connection:
        connection.execute("DELETE FROM kept_fresh")
    assert manual.due() == [(date(2024, 3, 1), date(2024, 6, 27))]
    manual.by_hand(date(2024, 6, 3), date(2024, 6, 28))
    assert manual.mark() is not None
    assert manual.due() == [(date(2024, 3, 1), date(2024, 5, 31))]


def test_repair_keeps_the_mark(manual: Manual) -> None:
    """It says what no bar file says."""
    manual.by_hand(date(2024, 2, 1), date(2024, 3, 1))
    manual.by_hand(date(2024, 5, 1), date(2024, 6, 28))
    before = manual.mark()
    repair(manual.harness.layout, [manual.series.instrument], NOW)
    assert manual.mark() == before is not None
    assert manual.due() == [(date(2024, 3, 1), date(2024, 4, 30))]


def test_lost_mark_falls_back_to_the_newest_bar(manual: Manual) -> None:
    """Without the ledger, history that a person did not load is still left alone."""
    manual.by_hand(date(2024, 2, 1), date(2024, 3, 1))
    manual.harness.ledger.close()
    manual.harness.layout.ledger.unlink()
    manual.harness.ledger = Ledger(manual.harness.layout.ledger)
    assert manual.mark() is None
    assert manual.due() == [(date(2024, 3, 1), date(2024, 6, 27))]
