"""Messages of the loader thread reach the log of the run."""

from datetime import UTC, datetime

from ktrdr_pipelines.defs.runs.loader_thread import Mailbox
from ktrdr_pipelines.domain.instruments import Series
from ktrdr_pipelines.domain.planning.reports import SeriesReport
from ktrdr_pipelines.domain.timeframes import Timeframe
from tests.support.fake_gateway import stock


def test_a_wait_is_logged_with_its_reason_and_end() -> None:
    """The log of a waiting run says what it waits for, and until when."""
    mailbox = Mailbox()
    mailbox.waiting("circuit breaker open", datetime(2026, 1, 5, 14, 39, tzinfo=UTC))
    _, messages, _ = mailbox.collect(0)
    assert messages == ["waiting until 2026-01-05T14:39:00Z: circuit breaker open"]


def test_the_report_of_a_series_is_there_once_it_has_ended() -> None:
    """A run need not wait for its other series to materialize what is explained."""
    mailbox = Mailbox()
    report = SeriesReport(Series(stock("AAPL"), Timeframe.D1))
    mailbox.ended(report)
    assert mailbox.collect(0) == ([], [], True)
    assert mailbox.take_ended() == [report]
    assert not mailbox.take_ended()
