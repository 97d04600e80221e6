"""Messages of the loader thread reach the log of the run."""

from datetime import UTC, datetime

from ktrdr_pipelines.defs.runs.loader_thread import Mailbox


def test_a_wait_is_logged_with_its_reason_and_end() -> None:
    """The log of a waiting run says what it waits for, and until when."""
    mailbox = Mailbox()
    mailbox.waiting("circuit breaker open", datetime(2026, 1, 5, 14, 39, tzinfo=UTC))
    _, messages, _ = mailbox.collect(0)
    assert messages == ["waiting until 2026-01-05T14:39:00Z: circuit breaker open"]
