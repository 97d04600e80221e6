"""The audit of requests: its totals, as rows are added and deleted."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from ktrdr_pipelines.store.ledger.ledger import Ledger, RequestRecord
from ktrdr_pipelines.store.ledger.request_audit import RequestTotals

NOW = datetime(2024, 6, 12, 12, tzinfo=UTC)


def request(at: datetime, outcome: str, rows: int = 0) -> RequestRecord:
    """Return a request for minutes of one stock."""
    return RequestRecord(
        series="AAPL|1m",
        contract_id=1,
        what_to_show="TRADES",
        gateway="127.0.0.1:4002",
        login="login 1",
        asked_end=None,
        duration="1 D",
        sent_at=at,
        took_s=0.5,
        outcome=outcome,
        rows=rows,
    )


@pytest.mark.parametrize("is_kept", [True, False])
def test_totals_count_every_request_once(tmp_path: Path, *, is_kept: bool) -> None:
    """Whether from an earlier result or anew; also after old rows were deleted."""
    ledger = Ledger(tmp_path / "ledger.sqlite")
    known = RequestTotals()

    def totals() -> RequestTotals:
        nonlocal known
        known = ledger.requests.totals(known if is_kept else None)
        return known

    assert totals() == RequestTotals()
    assert not known.last_failed
    old, new = NOW - timedelta(days=100), NOW - timedelta(minutes=1)
    ledger.requests.record(request(old, "bars", 390))
    ledger.requests.record(request(old, "GatewayTimeoutError"))
    assert (totals().requests, known.answered, known.failed, known.bars) == (2, 1, 1, 390)
    assert (known.last_answered_at, known.last_failed) == (old, True)
    for outcome, rows in (("bars", 10), ("no data", 0), ("head", 0), ("cancelled", 0)):
        ledger.requests.record(request(new, outcome, rows))
    assert (totals().requests, known.answered, known.failed, known.bars) == (6, 4, 2, 400)
    assert (known.last_answered_at, known.last_failed) == (new, False)
    assert ledger.requests.prune(NOW) == 2
    assert (totals().requests, known.answered, known.failed, known.bars) == (4, 3, 1, 10)
