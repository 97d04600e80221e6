"""The command line: every command by its name, and the way in and out of the process.

Commands import what is heavy when they run, so that ``ktrdr --help`` answers at once.
"""

import sys
from typing import Annotated

import typer

from ktrdr_pipelines.cli.commands import (
    demo,
    gaps,
    load,
    plan,
    query,
    ranges,
    status,
    store,
    universe,
    up,
    verify,
)
from ktrdr_pipelines.cli.commands import gateway as doctor
from ktrdr_pipelines.cli.commands import gateway as health
from ktrdr_pipelines.cli.commands import gateway as probe
from ktrdr_pipelines.cli.commands import load as update
from ktrdr_pipelines.cli.commands import simulate as gateway
from ktrdr_pipelines.cli.entry_point import log_to_file, run
from ktrdr_pipelines.cli.output import say, say_clock, take_streams

app = typer.Typer(
    name="ktrdr",
    help="A complete local store of Interactive Brokers bars.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for name, command, summary in (
    ("demo", demo.demo, "Show it all with a simulated gateway"),
    ("init", store.init, "Make the data folder a store"),
    ("up", up.up, "Start Dagster's web UI and daemon"),
    ("load", load.load, "Load bars of symbols and timeframes"),
    ("update", update.update, "Load the tails and gaps of the whole universe"),
    ("plan", plan.plan, "Say what a load or an update would cost"),
    ("ranges", ranges.ranges, "Show where data begin, and what is held of them"),
    ("query", query.query, "Answer SQL about all bars"),
    ("status", status.status, "Show what is there and what is missing"),
    ("gaps", gaps.gaps, "Name what is missing, and why"),
    ("verify", verify.verify, "Read and recount everything on disk"),
    ("health", health.health, "See whether the gateway answers"),
    ("doctor", doctor.doctor, "Find out what is wrong with the gateway's set-up"),
    ("probe", probe.probe, "Say how to ask a gateway about what is not certain"),
    ("repair", store.repair, "Rebuild what can be rebuilt from the bar files"),
    ("simulate", gateway.simulate, "Serve a gateway without an account"),
):
    app.command(name, short_help=summary)(command)
app.add_typer(universe.app, name="universe", short_help="Check and edit the universe")


def _say_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        say(f"ktrdr {version('ktrdr-pipelines')}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_say_version, is_eager=True, help="Print the version and end."
        ),
    ] = False,
) -> None:
    _ = version
    say_clock()


def command_line(arguments: list[str]) -> object:
    """Run one command line; errors come as they are."""
    return app(arguments, prog_name="ktrdr", standalone_mode=False)


def main() -> None:
    """Run the command that the process was started with, and end with its exit code."""
    take_streams()
    sys.exit(run(command_line, sys.argv[1:], log_to_file()))


if __name__ == "__main__":
    main()
