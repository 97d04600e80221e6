"""What the loader's thread has to say reaches the log of the run."""

from datetime import UTC, datetime

from ktrdr_pipelines.defs.runs.loader_thread import Mailbox


def test_a_wait_is_a_line_of_the_log() -> None:
    """Whoever looks at a run that stands still reads what it waits for, and until when."""
    mailbox = Mailbox()
    mailbox.waiting("it is left alone", datetime(2026, 1, 5, 14, 39, tzinfo=UTC))
    _, notes, _ = mailbox.collect(0)
    assert notes == ["waiting until 2026-01-05T14:39:00Z: it is left alone"]
