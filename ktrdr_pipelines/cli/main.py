"""Define the ``ktrdr`` program: all its commands by name, and its entry point.

Commands import heavy modules when they run, so that ``ktrdr --help`` is fast.

Not here: errors and exit codes (``cli.entry_point``).
"""

import gc
import sys
from typing import Annotated, Final

import typer

from ktrdr_pipelines.cli.arguments import DataOption, running, takes_data_folder
from ktrdr_pipelines.cli.commands import (
    adjust,
    demo,
    files,
    gaps,
    gateway,
    load,
    plot,
    query,
    simulate,
    status,
    store,
    universe,
    up,
)
from ktrdr_pipelines.cli.entry_point import log_to_file, run
from ktrdr_pipelines.cli.output import say, say_clock, say_warnings, take_streams

app = typer.Typer(
    name="ktrdr",
    help="A complete local store of Interactive Brokers bars.\n\nktrdr demo needs no account. "
    "ktrdr COMMAND --help describes a command.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for name, command, summary in (
    ("demo", demo.demo, "Run the whole pipeline with a simulated gateway"),
    ("init", store.init, "Create a store in the data folder"),
    ("up", up.up, "Start Dagster's web UI and daemon"),
    ("serve", up.serve, "Serve the REST API of the store"),
    ("load", load.load, "Load bars of symbols and timeframes"),
    ("update", load.update, "Load the tails and gaps of the whole universe"),
    ("plan", load.plan, "Estimate what a load or an update would cost"),
    ("ranges", status.ranges, "Show where data begin, and which bars are stored"),
    ("plot", plot.plot, "Draw the bars of a series, and what is missing"),
    ("query", query.query, "Run SQL over all bars"),
    ("export", files.export, "Write bars to CSV, Parquet or Arrow files"),
    ("import-csv", files.import_csv, "Import bars of CSV files of other programs"),
    ("status", status.status, "Show the state of the store and what is missing"),
    ("gaps", gaps.gaps, "List what is missing, and why"),
    ("verify", store.verify, "Read and check everything on disk"),
    ("adjust", adjust.adjust, "Multiply bars before a date, or list what is multiplied"),
    ("health", gateway.health, "Check whether the gateway responds"),
    ("doctor", gateway.doctor, "Diagnose the gateway's setup"),
    ("probe", gateway.probe, "Explain how to test assumptions about a gateway"),
    ("repair", store.repair, "Rebuild what can be rebuilt from the bar files"),
    ("simulate", simulate.simulate, "Serve a simulated gateway, without an account"),
):
    app.command(name, short_help=summary)(command)
app.add_typer(universe.app, name="universe", short_help="Check and edit the universe")
_OBJECTS_A_COLLECTION: Final = 50_000
"""Objects that are made between two searches for unused cycles: a command makes many, and keeps
most of them until it ends."""
_WITHOUT_STORE: Final = {"demo", "probe", "simulate"}
for one in (*app.registered_commands, *universe.app.registered_commands):
    if one.callback is not None and one.name not in _WITHOUT_STORE:
        one.callback = takes_data_folder(one.callback)


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
            "--version", callback=_say_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
    data: DataOption = None,
) -> None:
    _ = version, data
    say_clock()
    say_warnings()


def command_line(arguments: list[str]) -> object:
    """Run one command line, and let its errors propagate."""
    with running(arguments):
        return app(arguments, prog_name="ktrdr", standalone_mode=False)


def main() -> None:
    """Run the command line of the process, and exit with its exit code."""
    gc.set_threshold(_OBJECTS_A_COLLECTION)
    take_streams()
    sys.exit(run(command_line, sys.argv[1:], log_to_file()))


if __name__ == "__main__":
    main()
