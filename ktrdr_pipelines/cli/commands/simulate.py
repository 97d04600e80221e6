"""``ktrdr simulate``: serve a simulated gateway on this machine, without an account.

Not here: the gateway itself (``simulator.server``), starting one for another command
(``cli.processes``).
"""

import sys
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ktrdr_pipelines.cli.output import AsJson, instant_text, say, say_json
from ktrdr_pipelines.errors import ExitCode

if TYPE_CHECKING:
    from ktrdr_pipelines.simulator.market.market import Market
    from ktrdr_pipelines.simulator.simulated_gateway import Behaviour
    from ktrdr_pipelines.simulator.variants import ReadVariants


class PacedRequests(StrEnum):
    """The requests that are paced, defined here so that no other command imports a simulator."""

    DOCUMENTED = "documented"
    HARD = "hard"
    SOFT = "soft"
    OFF = "off"


class Durations(StrEnum):
    """The tables of durations, defined here so that the command's help imports no simulator."""

    SAFE = "safe"
    WIDE = "wide"
    ANY = "any"


@dataclass(frozen=True, slots=True)
class ServedMarket:
    """The market to serve: recorded bars or bars of a seed, from an instant on, and its splits."""

    bars: Path | None
    seed: int | None
    now: datetime | None
    variants: "ReadVariants | None" = None
    splits: Path | None = None

    def __str__(self) -> str:
        return f"synthetic market {self._seed}" if self.bars is None else f"bars of {self.bars}"

    def opened(self) -> "Market":
        """Return the market, read from its files or made from its seed.

        Raises:
            SimulatorError: the recorded bars cannot be read, or are malformed.
            UsageError: the file of splits cannot be read, or is malformed.
        """
        from ktrdr_pipelines.simulator.server import open_market
        from ktrdr_pipelines.simulator.variants import ReadVariants

        variants = self.variants or ReadVariants()
        return open_market(self.bars, self._seed, variants.market, splits=self.splits)

    @property
    def _seed(self) -> int:
        return 1 if self.seed is None else self.seed


@dataclass(frozen=True, slots=True)
class SimulatorOptions:
    """How the market is served: allowed durations, faults, pacing, and the log of requests."""

    durations: Durations | None
    faults: Path | None
    pacing: PacedRequests
    hold_s: float
    log: Path | None
    variants: "ReadVariants | None" = None
    seed: int = 1

    def behaviour(self) -> "Behaviour":
        """Return the options as the simulator's own settings.

        Raises:
            SimulatorError: the file of faults cannot be read, or is malformed.
        """
        from ktrdr_pipelines.simulator.faults.fault_file import read_faults
        from ktrdr_pipelines.simulator.requests.durations import DurationTable
        from ktrdr_pipelines.simulator.requests.pacing_rules import SimulatedPacing
        from ktrdr_pipelines.simulator.simulated_gateway import Behaviour
        from ktrdr_pipelines.simulator.variants import ReadVariants

        variants = self.variants or ReadVariants()
        return Behaviour(
            pacing=SimulatedPacing(self.pacing),
            hold_s=self.hold_s,
            faults=None if self.faults is None else read_faults(self.faults),
            log=self.log,
            durations=DurationTable(self.durations or Durations.WIDE),
            speed=replace(variants.speed, seed=self.seed),
            variants=variants.gateway,
        )


def check_together(
    market: ServedMarket,
    options: SimulatorOptions,
    zone: str | None = None,
    variants: Sequence[str] = (),
) -> None:
    """Refuse options that exclude each other: one of them would have no effect.

    Raises:
        UsageError: two options exclude each other; the error names them.
    """
    from ktrdr_pipelines.errors import UsageError

    invented = [text for text in variants if text.partition("=")[0] in _INVENTED]
    if invented and market.bars is not None:
        raise UsageError(
            f"--bars with --variant {invented[0]}",
            reason="recorded bars and sessions are served unchanged",
            hint="Leave one of them out",
        )
    slowing = [text for text in variants if text.partition("=")[0] in _OF_SPEED]
    if slowing and options.pacing is not PacedRequests.SOFT:
        raise UsageError(
            f"--variant {slowing[0]} with --pacing {options.pacing}",
            reason="only a gateway with soft pacing has workers",
            hint="Add --pacing soft",
        )
    values = {
        "--zone": zone,
        "--variant": variants or None,
        "--bars": market.bars,
        "--seed": market.seed,
        "--durations": options.durations,
    }
    for one, other, why in _NOT_TOGETHER:
        if values[one] is not None and values[other] is not None:
            raise UsageError(f"{one} with {other}", reason=why, hint="Leave one of them out")


_INVENTED = frozenset({"flat_bars", "crypto_zone"})
"""The variants that only a synthetic market has."""

_OF_SPEED = frozenset(
    {"workers", "request_s", "bar_s", "most_waiting", "load", "noise", "wide_bars", "wide_factor"}
)
"""The variants that only a gateway with soft pacing has."""

_NOT_TOGETHER = (("--bars", "--seed", "recorded bars are not generated from a seed"),)
"""Pairs of options that exclude each other, with the reason."""


async def serve(
    port: int,
    market: ServedMarket,
    options: SimulatorOptions,
    wait: Callable[[], Awaitable[None]],
    *,
    as_json: bool,
) -> None:
    """Serve until ``wait`` returns, or until cancelled.

    Raises:
        SimulatorError: a file is malformed or missing, or the port cannot be listened on.
        UsageError: the file of splits is malformed or missing.
    """
    import asyncio

    from ktrdr_pipelines.app.views.service_documents import SimulatedGatewayDocument
    from ktrdr_pipelines.simulator.server import SimulatorServer
    from ktrdr_pipelines.simulator.simulated_gateway import SimClock

    behaviour = options.behaviour()
    opened = await asyncio.to_thread(market.opened)
    clock = SimClock(market.now if market.now is not None else opened.default_now())
    server = SimulatorServer(opened, clock=clock, port=port, behaviour=behaviour)
    await server.start()
    try:
        started_at = server.clock.now()
        if as_json:
            say_json(
                SimulatedGatewayDocument(
                    complete=True,
                    exit_code=int(ExitCode.DONE),
                    host=server.host,
                    port=server.port,
                    market=str(market),
                    now=started_at,
                ),
                lines=False,
            )
        else:
            address_text = f"{server.host}:{server.port}"
            say(f"serving {market} on {address_text}, now {instant_text(started_at)}")
        sys.stdout.flush()
        await wait()
    finally:
        await server.close()


async def for_ever() -> None:
    """Wait until cancelled."""
    import asyncio

    await asyncio.get_running_loop().create_future()


async def stdin_closed() -> None:
    """Wait until the parent process has ended or closed the pipe to stdin."""
    import asyncio

    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), sys.stdin
    )
    await reader.read()


def _say_example(wanted: bool) -> None:
    if wanted:
        from ktrdr_pipelines.simulator.faults.fault_file import example_text

        say(example_text().rstrip())
        raise typer.Exit


def simulate(  # noqa: PLR0913 - an argument an option
    *,
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Port to serve on; 0 takes any free port.")
    ] = 4002,
    bars: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Folder of recorded bars to replay. [default: a synthetic market]",
        ),
    ] = None,
    now: Annotated[
        str | None,
        typer.Option(
            metavar="INSTANT",
            help="Start of the gateway's clock, with a zone, such as 2024-01-05T14:30:00Z. "
            "[default: the market's own now]",
        ),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(help="Seed of the synthetic market. [default: 1]"),
    ] = None,
    splits: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="CSV file of stock splits, with the header symbol,ex_date,ratio. [default: none]",
        ),
    ] = None,
    zone: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Zone of the gateway's login, such as Europe/Zurich or GB. Last trade dates, "
            "stated ends and the greeting are in this zone. [default: New York, and last trade "
            "dates in the zone of the exchange]",
        ),
    ] = None,
    variant: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=VALUE",
            help="A way to differ from other gateways, as listed above; may be repeated.",
        ),
    ] = None,
    durations: Annotated[
        Durations | None,
        typer.Option(
            help="Which durations are accepted for each bar size: safe: IB's older table; wide: "
            "its current table; any: all. [default: wide]"
        ),
    ] = None,
    faults: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="File of faults to inject. [default: none]"),
    ] = None,
    faults_example: Annotated[
        bool,
        typer.Option(
            "--faults-example",
            callback=_say_example,
            is_eager=True,
            help="Print a commented example of a file of faults, and exit.",
        ),
    ] = False,
    pacing: Annotated[
        PacedRequests,
        typer.Option(
            help="documented: IB's hard limits for bars of 30 s or less; hard: the same for all "
            "bars; soft: longer bars share a few workers, too many requests end the connection; "
            "off: no limits."
        ),
    ] = PacedRequests.DOCUMENTED,
    hold_ids: Annotated[
        float,
        typer.Option(
            min=0,
            metavar="SECONDS",
            help="How long the client id of a killed client stays in use.",
        ),
    ] = 0.0,
    log: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="File to append all requests, violations and faults to, as JSON lines.",
        ),
    ] = None,
    with_parent: Annotated[
        bool, typer.Option("--until-stdin-closes", hidden=True, help="Exit when stdin closes.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Serve a simulated gateway on 127.0.0.1 until you stop it.

    Its bars are marked as simulated: they need a separate store and never mix with real bars. Any
    client of the Interactive Brokers API can connect to it.

    A file of faults has entries such as {fault: silence, symbol: AAPL, nth: 3}. Faults of one
    request: silence, hang_up, cut, late, trickle, bars_after_cancel, error, invalid (321),
    unknown_contract (200), no_data, past_oldest, pacing, newest_missing (2188), partial,
    duplicated, conflicting, unordered, restated. Of the whole gateway: link_lost (1100, then 1101
    or 1102), farm_broken (2105, then 2106), farm_flaps (2103, 2104), nightly_farms (2103, 2104,
    1100 again and again, 1102, 2103), farm_unnamed (an 1102 that does not list a farm),
    nightly_reset, ids_held (326 for every id), clock_off. Selectors: kind, symbol, from, until,
    nth, every, times, probability; of restated also bars_from and bars_until, for some bars only.
    --faults-example prints a file with all of them.

    Gateways also differ without a fault. Variants: hours_zone=login (trading hours in the
    zone of the login), zone_names=modern (America/New_York for US/Eastern),
    plain_expiry_days=DAYS (last trade dates further ahead have no time),
    flat_bars=all or symbols and security types such as THIN,FUT (minutes without a trade are
    returned as bars without volume), before_first_trade=previous or no_data_from_midnight (when a
    day begins to count as a session: with its first trade, or before its open; at the open by
    default),
    crypto_zone=NAME (sessions from 16:01 to 16:00 in that zone in place of UTC days), language=es,
    de or foreign (of errors), greeting_zone=TEXT (a long name of the zone), account_comma=yes,
    week_name=1W, "1 week" or none (the bar sizes of weeks that are accepted).

    With --pacing soft also: workers=NUMBER (requests served at a time; 4 by default;
    workers=6,3@60 are 3 from 60 seconds after the first request on), request_s=SECONDS and
    bar_s=SECONDS (that a request and each of its bars take; 0.3 and 0.0003 by default),
    most_waiting=NUMBER (that may wait for a worker before the connection ends; 30 by default),
    load=SHARE (by which each waiting request slows those that arrive: 0.1 is 10 %), noise=SHARE
    (standard deviation of the times; 0.3 is 30 %; repeatable by --seed), wide_bars=NUMBER and
    wide_factor=TIMES (how many times as long each bar beyond that number takes), end_factor=TIMES
    (how many times as long a request with an end takes; 30 by default).

    A file of splits has lines such as AAPL,2020-08-31,4: new shares for one old share, 0.05 for
    1:20. As at IB, every response from the start of that date on has its older bars adjusted:
    prices divided by the ratio, volumes multiplied by it. Recorded bars are taken to be as traded.

    Exit codes: 0 you stopped it, 1 it could not serve, 2 bad usage.
    """
    from ktrdr_pipelines.cli.entry_point import Stopped, run_stoppable
    from ktrdr_pipelines.domain.planning.date_bounds import parse_instant
    from ktrdr_pipelines.simulator.variants import read_variants

    _ = faults_example
    moment = None if now is None else parse_instant("--now", now)
    wait = stdin_closed if with_parent else for_ever
    read = read_variants(zone or "", variant or ())
    market = ServedMarket(bars, seed, moment, read, splits=splits)
    noise_seed = 1 if seed is None else seed
    options = SimulatorOptions(durations, faults, pacing, hold_ids, log, read, seed=noise_seed)
    check_together(market, options, zone, variant or ())
    serving = serve(port, market, options, wait, as_json=as_json)
    try:
        run_stoppable(serving)
    except Stopped:
        if not as_json:
            say("stopped")
