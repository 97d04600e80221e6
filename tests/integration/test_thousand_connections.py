"""A thousand connections leave nothing open, at the gateway or here."""

import asyncio
import gc
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from ktrdr_pipelines.ib.config import GatewayConfig
from ktrdr_pipelines.ib.connection.strategy import IbConnectionStrategy
from ktrdr_pipelines.ib.pacing.rate_limiter import RateLimiter
from ktrdr_pipelines.ib.pacing.rules import pacing_of
from ktrdr_pipelines.simulator.server import running_simulator

AT_ONCE = 10


def until(is_so: Callable[[], bool]) -> bool:
    """Return whether something becomes true within 20 seconds."""
    never = threading.Event()
    return any(is_so() or never.wait(0.02) for _ in range(1_000))


@pytest.mark.slow
def test_a_thousand_connects_and_disconnects_leave_nothing(tmp_path: Path) -> None:
    """The numbers of threads, sockets, files, tasks and locks are the same afterwards."""
    with running_simulator(now="2024-01-10T20:00:30+00:00") as gateway:
        config = GatewayConfig(state_dir=tmp_path, port=gateway.port, timeout_s=20.0)

        async def connect(times: int) -> None:
            rate_limiter = RateLimiter(config.folder, pacing=pacing_of().scaled(0))
            strategy = IbConnectionStrategy(config, rate_limiter=rate_limiter)
            for _ in range(times):
                async with strategy.get_connection_for_operation("cli") as connection:
                    assert connection.is_up
            assert await strategy.cleanup_temporary_connections() == 0
            assert "nothing open" in repr(strategy)
            rate_limiter.close()

        async def main(times: int) -> int:
            await asyncio.gather(*(connect(times // AT_ONCE) for _ in range(AT_ONCE)))
            return len(asyncio.all_tasks())

        def held() -> tuple[int, int]:
            gc.collect()  # what tests before this one left to the collector is not counted
            return threading.active_count(), len(list(Path("/proc/self/fd").iterdir()))

        def all_have_left(times: int) -> bool:
            """Wait until the gateway, in a thread of this process, has closed its ends too."""
            return until(lambda: gateway.counts["left"] == times)

        asyncio.run(main(AT_ONCE))
        assert all_have_left(AT_ONCE)
        before = held()
        assert asyncio.run(main(1_000)) == 1
        assert all_have_left(1_000 + AT_ONCE)
        assert until(lambda: held() == before), held()
        assert gateway.counts["connected"] == 1_000 + AT_ONCE
        assert "0 connections" in repr(gateway)
    locks = {path.name for path in tmp_path.rglob("*lock*")}
    assert len(locks - {"logins.lock"}) <= AT_ONCE
