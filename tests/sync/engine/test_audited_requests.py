"""The audit has a row for every request that was sent to the gateway, and for no other."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ktrdr_pipelines.domain.timeframes import Timeframe
from ktrdr_pipelines.errors import GatewayTimeoutError, OutageError
from ktrdr_pipelines.store.ledger.ledger import Ledger
from ktrdr_pipelines.sync.engine.audited_requests import RequestAudit, RequestSubject, audited
from tests.support.fake_gateway import FakeGateway, series_of, stock, utc

NOW = utc(2026, 1, 5, 14, 30)
SERIES = series_of(stock("AAPL"), Timeframe.H1)


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    """Return a ledger."""
    return Ledger(tmp_path / "ledger.sqlite")


@pytest.fixture
def audit(ledger: Ledger) -> RequestAudit:
    """Return the audit of a request for bars."""
    about = RequestSubject(SERIES, 265598, "TRADES", NOW, "5 D")
    return RequestAudit(ledger, FakeGateway({}, NOW), about, lambda: NOW)


def outcomes(ledger: Ledger) -> list[str]:
    """Return the outcome of each row, oldest first."""
    return [record.outcome for record in reversed(ledger.requests.newest(10))]


def run_audited(audit: RequestAudit, request: Callable[[Any], Any]) -> Any:
    """Make a request, and record it."""
    return asyncio.run(audited(audit, request, "head", proved=str))


def test_a_response_is_recorded_with_what_it_proved(ledger: Ledger, audit: RequestAudit) -> None:
    """One request is one row, with all its parameters."""

    async def respond(sent: Callable[[], None]) -> str:
        sent()
        return "data begin 1980"

    assert run_audited(audit, respond) == "data begin 1980"
    (row,) = ledger.requests.newest(10)
    assert (row.outcome, row.proved, row.rows) == ("head", "data begin 1980", 0)
    assert (row.series, row.contract_id, row.duration) == ("AAPL|1h", 265598, "5 D")
    assert (row.asked_end, row.sent_at) == (NOW, NOW)


def test_a_request_that_was_not_sent_has_no_row(ledger: Ledger, audit: RequestAudit) -> None:
    """A lost connection or a known refusal stops the request before the gateway."""

    async def stopped(_: Callable[[], None]) -> str:
        raise OutageError("bars", reason="the link is lost")

    with pytest.raises(OutageError):
        run_audited(audit, stopped)
    assert outcomes(ledger) == []
    assert audit.sent_times == 0


def test_a_request_resent_after_an_outage_has_two_rows(ledger: Ledger, audit: RequestAudit) -> None:
    """The gateway counts both; only the last has the outcome."""

    async def again(sent: Callable[[], None]) -> str:
        sent()
        sent()
        raise GatewayTimeoutError("bars", reason="no answer in 30 s")

    with pytest.raises(GatewayTimeoutError):
        run_audited(audit, again)
    assert outcomes(ledger) == ["OutageError", "GatewayTimeoutError"]


def test_a_cancelled_request_has_a_row(ledger: Ledger, audit: RequestAudit) -> None:
    """The open request of a load that is cancelled has a row."""

    async def cancelled(sent: Callable[[], None]) -> str:
        sent()
        raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        run_audited(audit, cancelled)
    assert outcomes(ledger) == ["cancelled"]
