"""The audit of requests: its totals, as rows are added and deleted."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from ktrdr_pipelines.domain.intervals import Interval
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


def test_a_queued_request_is_stored_with_the_next_transaction_that_takes_it(
    tmp_path: Path,
) -> None:
    """It is stored with claims, or before any read; not if that transaction fails."""
    ledger, other = Ledger(tmp_path / "ledger.sqlite"), Ledger(tmp_path / "ledger.sqlite")
    ledger.requests.queue(request(NOW, "bars", 390))
    assert other.requests.count() == 0
    with pytest.raises(ValueError, match="claims"), ledger.requests.with_queued():
        raise ValueError("claims")
    assert other.requests.count() == 0
    with ledger.requests.with_queued():
        interval = Interval(NOW, NOW + timedelta(hours=1))
        ledger.claims.acquire("AAPL|1m", [interval], "me", NOW, 60.0)
    assert (other.requests.count(), len(other.claims.live("AAPL|1m", NOW))) == (1, 1)
    ledger.requests.queue(request(NOW, "bars", 10))
    assert ledger.requests.totals().bars == 400
    assert other.requests.count() == 2


def test_what_is_remembered_is_read_again_after_any_change(tmp_path: Path) -> None:
    """Whether this connection makes it or another one does."""
    ledger, other = Ledger(tmp_path / "ledger.sqlite"), Ledger(tmp_path / "ledger.sqlite")
    before = ledger.version()
    assert ledger.basis_checks.of("AAPL").requests == 0
    assert ledger.version() == before
    for count, one in ((1, ledger), (2, other)):
        one.basis_checks.change("AAPL", lambda known: replace(known, requests=known.requests + 1))
        assert ledger.basis_checks.of("AAPL").requests == count
    assert ledger.version() != before


def test_nothing_is_remembered_of_a_transaction_that_is_rolled_back(tmp_path: Path) -> None:
    """What is read inside of one may never come true."""
    ledger = Ledger(tmp_path / "ledger.sqlite")

    def fail() -> None:
        with ledger.database.writing():
            ledger.basis_checks.change("AAPL", lambda known: replace(known, requests=7))
            assert ledger.basis_checks.of("AAPL").requests == 7
            raise RuntimeError("the caller broke")

    with pytest.raises(RuntimeError):
        fail()
    assert ledger.basis_checks.of("AAPL").requests == 0


def test_the_version_is_that_of_one_connection(tmp_path: Path) -> None:
    """Another connection may have the counts, and the address, of one that was closed."""
    ledger = Ledger(tmp_path / "ledger.sqlite")
    seen = set()
    for _ in range(5):
        seen.add(ledger.version())
        ledger.close()
    assert len(seen) == 5
