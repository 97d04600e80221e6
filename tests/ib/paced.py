"""A clock that is set, and requests as the budget sees them."""

import asyncio
from typing import Any

from ktrdr_pipelines.ib.pacing.rate_limiter import RateLimiter
from ktrdr_pipelines.ib.pacing.rules import PacedRequest, RequestKind


class Time:
    """A clock that moves only while somebody sleeps."""

    def __init__(self) -> None:
        self.now = 5000.0

    def __call__(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        until = self.now + seconds
        await asyncio.sleep(0)
        self.now = max(self.now, until)


def bars(end: object, *, contract: str = "1", **other: Any) -> PacedRequest:
    """Make a request for minute bars."""
    return PacedRequest(RequestKind.BARS, contract, f"{contract}|{end}", **other)


async def send(rate_limiter: RateLimiter, request: PacedRequest) -> float:
    """Send a request that is answered at once, and give its stamp."""
    async with rate_limiter.permit(request, hold_s=45) as permit:
        permit.release()
    return permit.sent_at_s


async def hold(rate_limiter: RateLimiter, request: PacedRequest, hold_s: float = 45) -> float:
    """Send a request that is never answered."""
    async with rate_limiter.permit(request, hold_s=hold_s) as permit:
        return permit.sent_at_s
