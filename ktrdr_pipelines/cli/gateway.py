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
from ktrdr_pipelines.simulator.pacing import PacingMode

if TYPE_CHECKING:
    from ktrdr_pipelines.simulator.behaviour import Behaviour
    from ktrdr_pipelines.simulator.server import SimulatorServer


class Durations(StrEnum):
    """The tables of durations, named here so that the command's help needs no simulator."""

    SAFE = "safe"
    WIDE = "wide"
    ANY = "any"


def _say_example(wanted: bool) -> None:
    if wanted:
        from ktrdr_pipelines.simulator.faultfile import example_text

        say(example_text().rstrip())
        raise typer.Exit


def simulate(  # noqa: PLR0913 - an argument an option
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
    faults: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="What goes wrong, and when. [default: nothing]"),
    ] = None,
    faults_example: Annotated[
        bool,
        typer.Option(
            "--faults-example",
            callback=_say_example,
            is_eager=True,
            help="Print an example of such a file, which explains all of it, and end.",
        ),
    ] = False,
    pacing: Annotated[
        PacingMode,
        typer.Option(
            help="documented: IB's hard limits for bars of 30 s or less; hard: the same for all "
            "bars; soft: longer bars share a few workers, too many end the connection; off: none."
        ),
    ] = PacingMode.DOCUMENTED,
    hold_ids: Annotated[
        float,
        typer.Option(
            min=0,
            metavar="SECONDS",
            help="How long the client id of a client that was killed stays taken.",
        ),
    ] = 0.0,
    log: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Add all requests, violations and faults to it as JSON lines."
        ),
    ] = None,
    with_parent: Annotated[
        bool, typer.Option("--until-stdin-closes", hidden=True, help="End when stdin does.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Serve a simulated gateway on 127.0.0.1 until you stop it.

    Its bars are marked as simulated: they go into a store of their own and never mix with real
    ones. Point any client of the Interactive Brokers API at it.

    A file of faults lists entries such as {fault: silence, symbol: AAPL, nth: 3}. Faults of one
    request: silence, hang_up, cut, late, trickle, bars_after_cancel, error, invalid (321),
    unknown_contract (200), no_data, past_oldest, pacing, newest_missing (2188), partial,
    duplicated, conflicting, unordered, restated. Of the whole gateway: link_lost (1100, then 1101
    or 1102), farm_broken (2105, then 2106), nightly_reset, clock_off. Selectors: kind, symbol,
    from, until, nth, times, probability. --faults-example prints a file with every one of them.
    """
    from ktrdr_pipelines.cli.dates import parse_instant
    from ktrdr_pipelines.cli.stopping import Stopped, run_stoppable

    _ = faults_example
    moment = None if now is None else parse_instant("--now", now)
    wait = _stdin_closed if with_parent else _for_ever
    manners = _Manners(durations, faults, pacing, hold_ids, log)
    work = _serve(port, _Market(bars, moment, seed), manners, wait, as_json=as_json)
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

    def __str__(self) -> str:
        return f"synthetic market {self.seed}" if self.bars is None else f"bars of {self.bars}"


@dataclass(frozen=True, slots=True)
class _Manners:
    """How it is served: what may be asked, what goes wrong, what is counted and written down."""

    durations: Durations
    faults: Path | None
    pacing: PacingMode
    hold_s: float
    log: Path | None

    def behaviour(self) -> "Behaviour":
        from ktrdr_pipelines.simulator.behaviour import Behaviour
        from ktrdr_pipelines.simulator.faultfile import read_faults
        from ktrdr_pipelines.simulator.steps import DurationTable

        return Behaviour(
            pacing=self.pacing,
            hold_s=self.hold_s,
            faults=None if self.faults is None else read_faults(self.faults),
            log=self.log,
            durations=DurationTable(self.durations),
        )


async def _serve(
    port: int,
    market: _Market,
    manners: _Manners,
    wait: Callable[[], Awaitable[None]],
    *,
    as_json: bool,
) -> None:
    from ktrdr_pipelines.simulator.clock import SimClock
    from ktrdr_pipelines.simulator.markets import open_market
    from ktrdr_pipelines.simulator.server import SimulatorServer

    behaviour = manners.behaviour()
    opened = await asyncio.to_thread(open_market, market.bars, market.seed)
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


async def _for_ever() -> None:
    await asyncio.get_running_loop().create_future()


async def _stdin_closed() -> None:
    """Wait until whoever started this process is gone, or has closed the pipe."""
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), sys.stdin
    )
    await reader.read()
