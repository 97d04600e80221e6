"""``ktrdr simulate``: a gateway without an account, on this machine.

Not here: the simulator itself (``simulator``).
"""

import asyncio
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ktrdr_pipelines.cli.output import AsJson, instant_text, say, say_json

if TYPE_CHECKING:
    from ktrdr_pipelines.simulator.server import SimulatorServer


class Durations(StrEnum):
    """The tables of durations, named here so that the command's help needs no simulator."""

    SAFE = "safe"
    WIDE = "wide"
    ANY = "any"


def simulate(
    *,
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="The port to serve on; 0 takes any free one.")
    ] = 4002,
    bars: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="A folder of recorded bars to replay. [default: a synthetic market]",
        ),
    ] = None,
    now: Annotated[
        str | None,
        typer.Option(
            metavar="INSTANT",
            help="Where its clock starts, with a zone, such as 2024-01-05T14:30:00Z. "
            "[default: the market's own now]",
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="The number that the synthetic market grows from.")] = 1,
    durations: Annotated[
        Durations,
        typer.Option(
            help="Which bar sizes a duration may be asked with: the older table of IB, its "
            "current one, or all."
        ),
    ] = Durations.WIDE,
    with_parent: Annotated[
        bool, typer.Option("--until-stdin-closes", hidden=True, help="End when stdin does.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Serve a simulated gateway on 127.0.0.1 until you stop it.

    Its bars are marked as simulated: they go into a store of their own and never mix with real
    ones. Point any client of the Interactive Brokers API at it.
    """
    from ktrdr_pipelines.cli.dates import parse_instant
    from ktrdr_pipelines.cli.stopping import Stopped, run_stoppable

    moment = None if now is None else parse_instant("--now", now)
    wait = _stdin_closed if with_parent else _for_ever
    work = _serve(port, _Market(bars, moment, seed, durations), wait, as_json=as_json)
    try:
        run_stoppable(work)
    except Stopped:
        if not as_json:
            say("stopped")


@dataclass(frozen=True, slots=True)
class _Market:
    """What is served: recorded bars or those of a seed, from a moment on."""

    bars: Path | None
    now: datetime | None
    seed: int
    durations: Durations

    def __str__(self) -> str:
        return f"synthetic market {self.seed}" if self.bars is None else f"bars of {self.bars}"


async def _serve(
    port: int, market: _Market, wait: Callable[[], Awaitable[None]], *, as_json: bool
) -> None:
    from ktrdr_pipelines.simulator.clock import SimClock
    from ktrdr_pipelines.simulator.markets import open_market
    from ktrdr_pipelines.simulator.server import SimulatorServer
    from ktrdr_pipelines.simulator.steps import DurationTable

    opened = await asyncio.to_thread(open_market, market.bars, market.seed)
    clock = SimClock(market.now if market.now is not None else opened.default_now())
    table = DurationTable(market.durations)
    server = SimulatorServer(opened, clock=clock, port=port, durations=table)
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


async def _for_ever() -> None:
    await asyncio.get_running_loop().create_future()


async def _stdin_closed() -> None:
    """Wait until whoever started this process is gone, or has closed the pipe."""
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), sys.stdin
    )
    await reader.read()
