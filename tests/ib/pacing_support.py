"""A fake clock, and requests as the budget counts them."""

import asyncio
from typing import Any

from ktrdr_pipelines.ib.pacing.rate_limiter import RateLimiter
from ktrdr_pipelines.ib.pacing.rules import PacedRequest, RequestKind


class FakeClock:
    """A clock that advances only by its own ``sleep``."""

    def __init__(self, now: float = 5000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        until = self.now + seconds
        await asyncio.sleep(0)
        self.now = max(self.now, until)


def bars(end: object, *, contract: str = "1", **other: Any) -> PacedRequest:
    """Return a request for minute bars."""
    return PacedRequest(RequestKind.BARS, contract, f"{contract}|{end}", **other)


async def send(rate_limiter: RateLimiter, request: PacedRequest) -> float:
    """Send a request that gets a response at once; return when it was sent."""
    async with rate_limiter.permit(request, hold_s=45) as permit:
        permit.release()
    return permit.sent_at_s


async def hold(rate_limiter: RateLimiter, request: PacedRequest, hold_s: float = 45) -> float:
    """Send a request that gets no response; return when it was sent."""
    async with rate_limiter.permit(request, hold_s=hold_s) as permit:
        return permit.sent_at_s
