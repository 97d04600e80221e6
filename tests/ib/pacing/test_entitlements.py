"""Missing permissions: each blocks what it concerns, in every process, and is retried daily."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ktrdr_pipelines.domain.instruments import Instrument, Series, WhatToShow
from ktrdr_pipelines.domain.planning.responses import BarRequest, Response
from ktrdr_pipelines.errors import EntitlementError
from ktrdr_pipelines.ib.pacing.entitlements import Entitlement, Entitlements
from ktrdr_pipelines.ib.pacing.rate_limiter import RateLimiter
from tests.ib.pacing_support import FakeClock
from tests.ib.scripted_gateway import HMDS

REFUSED = (162, f"{HMDS}No market data permissions for ISLAND STK. Requested")
DIFFERENT_IP = (162, f"{HMDS}Trading TWS session is connected from a different IP address")


def listed_at(exchange: str, replies: Any, contract_id: int) -> Any:
    """Return a handler that sends contracts of another exchange, except for AAPL."""

    def respond(client: Any, fields: list[str]) -> None:
        texts = [text.format(id=fields[2]) for text in replies.details]
        texts[2] = fields[4]
        if fields[4] != "AAPL":
            texts[12], texts[20] = str(contract_id), exchange
        client.send(*texts)
        client.send(52, 1, fields[2])

    return respond


def other(request: BarRequest, symbol: str) -> BarRequest:
    """Return the same request for another symbol."""
    instrument = replace(request.series.instrument, symbol=symbol, ib_symbol=symbol)
    return replace(request, series=Series(instrument, request.series.timeframe))


def test_a_second_series_of_a_missing_permission_is_not_requested(
    harness: Any, minute_request: BarRequest, replies: Any
) -> None:
    """A refusal of NASDAQ stocks stops the next NASDAQ stock of the run."""

    async def ask(source: Any) -> None:
        with pytest.raises(EntitlementError, match="No market data permissions") as first:
            await source.bars(minute_request)
        with pytest.raises(EntitlementError, match="NASDAQ STK TRADES was refused") as second:
            await source.bars(other(minute_request, "MSFT"))
        assert (first.value.was_sent, second.value.was_sent) == (True, False)

    harness(
        ask,
        contract=listed_at("NASDAQ", replies, 272093),
        bars=lambda client, fields: client.error(fields[1], *REFUSED),
    )
    assert len(harness.gateway.frames(20)) == 1


@pytest.mark.parametrize(
    ("symbol", "what"), [("IBM", WhatToShow.TRADES), ("AAPL", WhatToShow.MIDPOINT)]
)
def test_another_exchange_or_kind_of_data_is_requested(
    harness: Any, minute_request: BarRequest, replies: Any, *, symbol: str, what: WhatToShow
) -> None:
    """A refusal stops only what it concerns."""

    def once(client: Any, fields: list[str]) -> None:
        if len(harness.gateway.frames(20)) == 1:
            client.error(fields[1], *REFUSED)
        else:
            replies.send_bars(client, fields)

    async def ask(source: Any) -> Any:
        with pytest.raises(EntitlementError, match="Level 1 market data subscription"):
            await source.bars(minute_request)
        request = other(minute_request, symbol)
        instrument = replace(request.series.instrument, what_to_show=what)
        series = Series(instrument, request.series.timeframe)
        return await source.bars(replace(request, series=series))

    answer = harness(ask, contract=listed_at("NYSE", replies, 8314), bars=once)
    assert isinstance(answer, Response)


def test_a_competing_session_concerns_every_symbol(
    harness: Any, minute_request: BarRequest, replies: Any
) -> None:
    """While another session receives the data, nothing is requested for minutes."""

    async def ask(source: Any) -> None:
        for symbol in ("AAPL", "IBM"):
            with pytest.raises(EntitlementError, match="different IP"):
                await source.bars(other(minute_request, symbol))

    harness(
        ask,
        contract=listed_at("NYSE", replies, 8314),
        bars=lambda client, fields: client.error(fields[1], *DIFFERENT_IP),
    )
    assert len(harness.gateway.frames(20)) == 1


def test_a_refused_head_blocks_bars(
    harness: Any, minute_request: BarRequest, aapl: Instrument
) -> None:
    """Head timestamps and bars need the same permission."""

    async def ask(source: Any) -> None:
        with pytest.raises(EntitlementError):
            await source.head(aapl)
        with pytest.raises(EntitlementError, match="not requested"):
            await source.bars(minute_request)

    harness(ask, head=lambda client, fields: client.error(fields[1], 354, "not subscribed"))
    assert harness.gateway.frames(20) == []


MORNING_S = 1_767_623_400.0
NASDAQ = Entitlement("NASDAQ", "STK", "TRADES")
NYSE = Entitlement("NYSE", "STK", "TRADES")


def is_blocked(entitlements: Entitlements, entitlement: Entitlement) -> bool:
    """Return whether a request would be stopped."""
    try:
        entitlements.check(entitlement, "a question")
    except EntitlementError:
        return True
    return False


def test_refusals_are_shared_by_processes_and_probed_once_a_day(tmp_path: Path) -> None:
    """A new process and a new boot respect a refusal for the rest of the day."""
    clock, one, other = (
        FakeClock(MORNING_S),
        RateLimiter(tmp_path, boot="1"),
        RateLimiter(tmp_path, boot="2"),
    )
    Entitlements(one, clock=clock).note(NASDAQ, EntitlementError("bars", reason="no", code=354))
    later = Entitlements(other, clock=clock)
    assert is_blocked(later, NASDAQ)
    assert not is_blocked(later, NYSE)
    clock.now += 86_399
    assert is_blocked(later, NASDAQ)
    clock.now += 2
    assert not is_blocked(later, NASDAQ)
    one.close()
    other.close()


def test_a_refusal_recorded_by_a_wrong_clock_does_not_last(tmp_path: Path) -> None:
    """A refusal recorded by a clock in the future does not count after it is set back."""
    clock, rate_limiter = FakeClock(MORNING_S), RateLimiter(tmp_path)
    clock.now += 30 * 86_400
    Entitlements(rate_limiter, clock=clock).note(
        NASDAQ, EntitlementError("bars", reason="no", code=354)
    )
    clock.now -= 30 * 86_400
    assert not is_blocked(Entitlements(rate_limiter, clock=clock), NASDAQ)
    rate_limiter.close()


def test_a_competing_session_is_forgotten_after_minutes(tmp_path: Path) -> None:
    """It blocks everything for five minutes."""
    clock, rate_limiter = FakeClock(MORNING_S), RateLimiter(tmp_path)
    entitlements = Entitlements(rate_limiter, clock=clock)
    entitlements.note(NASDAQ, EntitlementError("bars", reason="competing", code=10197))
    assert is_blocked(entitlements, NYSE)
    clock.now += 301
    assert not is_blocked(entitlements, NYSE)
    rate_limiter.close()


def test_a_reset_removes_refusals(tmp_path: Path) -> None:
    """The doctor's reset removes refusals."""
    rate_limiter = RateLimiter(tmp_path)
    Entitlements(rate_limiter).note(NASDAQ, EntitlementError("bars", code=354))
    rate_limiter.remember(lambda memory, database: memory.reset(database))
    assert not is_blocked(Entitlements(rate_limiter), NASDAQ)
    rate_limiter.close()


def test_a_probe_ignores_refusals_of_other_runs(tmp_path: Path) -> None:
    """It ignores refusals of other runs; its own count, and a response clears all."""
    clock, rate_limiter = FakeClock(MORNING_S), RateLimiter(tmp_path)

    def run() -> Entitlements:
        return Entitlements(rate_limiter, clock=clock)

    error = EntitlementError("bars", reason="not subscribed", code=354)
    run().note(NASDAQ, error)
    assert (error.entitlement, error.retry_in_s) == ("NASDAQ STK TRADES", 86_400.0)
    assert "NASDAQ STK TRADES" in error.hint
    person = run()
    assert is_blocked(person, NASDAQ)
    person.check(NASDAQ, "a question", probes=True)
    person.note(NASDAQ, EntitlementError("bars", reason="not subscribed", code=354))
    with pytest.raises(EntitlementError) as again:
        person.check(NASDAQ, "a question", probes=True)
    assert (again.value.was_sent, again.value.entitlement) == (False, "NASDAQ STK TRADES")
    another = run()
    another.check(NASDAQ, "a question", probes=True)
    another.granted(NASDAQ)
    assert not is_blocked(another, NASDAQ)
    assert not is_blocked(run(), NASDAQ)
    rate_limiter.close()


def test_a_running_process_notices_a_reset(tmp_path: Path) -> None:
    """A reset by another process counts at once."""
    one, doctor = RateLimiter(tmp_path), RateLimiter(tmp_path)
    running = Entitlements(one)
    running.note(NASDAQ, EntitlementError("bars", code=354))
    assert is_blocked(running, NASDAQ)
    doctor.remember(lambda memory, database: memory.reset(database))
    assert not is_blocked(running, NASDAQ)
    one.close()
    doctor.close()
