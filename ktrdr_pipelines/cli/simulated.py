"""Serving a simulated gateway as the options of ``ktrdr simulate`` say.

Not here: the options (``cli.gateway``), the simulator itself (``simulator``).
"""

import asyncio
import sys
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING

from ktrdr_pipelines.cli.output import instant_text, say, say_json
from ktrdr_pipelines.simulator.pacing import PacingMode

if TYPE_CHECKING:
    from ktrdr_pipelines.simulator.behaviour import Behaviour
    from ktrdr_pipelines.simulator.market import Market
    from ktrdr_pipelines.simulator.server import SimulatorServer
    from ktrdr_pipelines.simulator.variants import ReadVariants


class Durations(StrEnum):
    """The tables of durations, named here so that the command's help needs no simulator."""

    SAFE = "safe"
    WIDE = "wide"
    ANY = "any"


@dataclass(frozen=True, slots=True)
class ServedMarket:
    """What is served: recorded bars or the bars of a seed, from a moment."""

    bars: Path | None
    seed: int | None
    now: datetime | None
    variants: "ReadVariants | None" = None

    def __str__(self) -> str:
        return f"synthetic market {self._seed}" if self.bars is None else f"bars of {self.bars}"

    def opened(self) -> "Market":
        """Read what is served.

        Raises:
            SimulatorError: it cannot be read, or is malformed.
        """
        from ktrdr_pipelines.simulator.markets import open_market

        if self.variants is None:
            return open_market(self.bars, self._seed)
        return open_market(self.bars, self._seed, self.variants.market)

    @property
    def _seed(self) -> int:
        return 1 if self.seed is None else self.seed


@dataclass(frozen=True, slots=True)
class Manners:
    """How it is served: what may be asked, what goes wrong, what is counted and written down."""

    durations: Durations | None
    faults: Path | None
    pacing: PacingMode
    hold_s: float
    log: Path | None
    variants: "ReadVariants | None" = None

    def behaviour(self) -> "Behaviour":
        """Give the simulator's own words for it.

        Raises:
            SimulatorError: the file of faults cannot be read, or is malformed.
        """
        from ktrdr_pipelines.simulator.behaviour import Behaviour
        from ktrdr_pipelines.simulator.faultfile import read_faults
        from ktrdr_pipelines.simulator.steps import DurationTable
        from ktrdr_pipelines.simulator.variants import ReadVariants
        from ktrdr_pipelines.simulator.workers import Speed

        variants = self.variants or ReadVariants()
        return Behaviour(
            pacing=self.pacing,
            hold_s=self.hold_s,
            faults=None if self.faults is None else read_faults(self.faults),
            log=self.log,
            durations=DurationTable(self.durations or Durations.WIDE),
            speed=Speed(end_factor=variants.end_factor),
            variants=variants.gateway,
        )


def check_together(
    market: ServedMarket, manners: Manners, zone: str | None = None, variants: Sequence[str] = ()
) -> None:
    """Refuse options of which one would be of no effect.

    Raises:
        UsageError: there are such; they are named.
    """
    from ktrdr_pipelines.errors import UsageError

    invented = [text for text in variants if text.partition("=")[0] in _INVENTED]
    if invented and market.bars is not None:
        raise UsageError(
            f"--bars with --variant {invented[0]}",
            came="recorded bars and sessions are served as they are",
            remedy="Leave one of them out",
        )
    given = {
        "--zone": zone,
        "--variant": variants or None,
        "--bars": market.bars,
        "--seed": market.seed,
        "--durations": manners.durations,
    }
    for one, other, why in _NOT_TOGETHER:
        if given[one] is not None and given[other] is not None:
            raise UsageError(f"{one} with {other}", came=why, remedy="Leave one of them out")


_INVENTED = frozenset({"flat_bars", "crypto_zone"})
"""The variants that only a synthetic market has."""

_NOT_TOGETHER = (("--bars", "--seed", "recorded bars are not grown from a number"),)


async def serve(
    port: int,
    market: ServedMarket,
    manners: Manners,
    wait: Callable[[], Awaitable[None]],
    *,
    as_json: bool,
) -> None:
    """Serve until ``wait`` returns, or until cancelled.

    Raises:
        SimulatorError: a file is malformed or not there, or the port cannot be listened on.
    """
    from ktrdr_pipelines.simulator.clock import SimClock
    from ktrdr_pipelines.simulator.server import SimulatorServer

    behaviour = manners.behaviour()
    opened = await asyncio.to_thread(market.opened)
    clock = SimClock(market.now if market.now is not None else opened.default_now())
    server = SimulatorServer(opened, clock=clock, port=port, behaviour=behaviour)
    await server.start()
    try:
        _announce(server, str(market), as_json=as_json)
        await wait()
    finally:
        await server.close()


def _announce(server: "SimulatorServer", market: str, *, as_json: bool) -> None:
    now = server.clock.now()
    if as_json:
        told = {"host": server.host, "port": server.port, "market": market, "now": now}
        say_json(told, lines=False)
    else:
        say(f"serving {market} on {server.host}:{server.port}, now {instant_text(now)}")
    sys.stdout.flush()


async def for_ever() -> None:
    """Wait until cancelled."""
    await asyncio.get_running_loop().create_future()


async def stdin_closed() -> None:
    """Wait until whoever started this process is gone, or has closed the pipe."""
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), sys.stdin
    )
    await reader.read()
