"""``ktrdr simulate``: a gateway without an account, on this machine.

Not here: serving (``cli.simulated``), the simulator itself (``simulator``).
"""

from pathlib import Path
from typing import Annotated

import typer

from ktrdr_pipelines.cli.output import AsJson, say
from ktrdr_pipelines.cli.simulated import (
    Durations,
    Manners,
    ServedMarket,
    check_together,
    for_ever,
    serve,
    stdin_closed,
)
from ktrdr_pipelines.simulator.pacing import PacingMode


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
    seed: Annotated[
        int | None,
        typer.Option(help="The number that the synthetic market grows from. [default: 1]"),
    ] = None,
    zone: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="The zone of its login, such as Europe/Zurich or GB: last trade dates, stated "
            "ends and the greeting are told in it. [default: New York, and last trade dates in "
            "the exchange's]",
        ),
    ] = None,
    variant: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=VALUE",
            help="In what it differs from other gateways, as listed above; may be repeated.",
        ),
    ] = None,
    durations: Annotated[
        Durations | None,
        typer.Option(
            help="Which bar sizes a duration may be asked with: the older table of IB, its "
            "current one, or all. [default: wide]"
        ),
    ] = None,
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
    or 1102), farm_broken (2105, then 2106), farm_flaps (2103, 2104), nightly_farms (2103, 2104,
    1100 again and again, 1102, 2103), farm_unnamed (an 1102 that does not list a farm),
    nightly_reset, ids_held (326 for every id), clock_off. Selectors: kind, symbol, from, until,
    nth, every, times, probability. --faults-example prints a file with every one of them.

    Gateways differ while nothing is wrong, too. Variants: hours_zone=login (trading hours in the
    zone of the login), zone_names=modern (America/New_York for US/Eastern),
    plain_expiry_days=DAYS (last trade dates further ahead have no time),
    flat_bars=all or symbols and security types such as THIN,FUT (minutes without a trade come as
    bars without volume), before_first_trade=previous or no_data_from_midnight (when a day begins to
    count as a session: with its first trade, or before its open; at the open unless told),
    crypto_zone=NAME (sessions from 16:01 to 16:00 in that zone in place of UTC days), language=es,
    de or foreign (of errors), greeting_zone=TEXT (a long name of the zone), account_comma=yes,
    week_name=1W, "1 week" or none (the bar sizes of weeks that are accepted),
    end_factor=TIMES (with --pacing soft: how many times as long a request with an end takes; 30
    unless told).

    Exit codes: 0 you stopped it, 1 it could not serve, 2 bad usage.
    """
    from ktrdr_pipelines.cli.dates import parse_instant
    from ktrdr_pipelines.cli.stopping import Stopped, run_stoppable
    from ktrdr_pipelines.simulator.variants import read_variants

    _ = faults_example
    moment = None if now is None else parse_instant("--now", now)
    wait = stdin_closed if with_parent else for_ever
    read = read_variants(zone or "", variant or ())
    market = ServedMarket(bars, seed, moment, read)
    manners = Manners(durations, faults, pacing, hold_ids, log, read)
    check_together(market, manners, zone, variant or ())
    work = serve(port, market, manners, wait, as_json=as_json)
    try:
        run_stoppable(work)
    except Stopped:
        if not as_json:
            say("stopped")
