"""``ktrdr init`` and ``ktrdr repair``: create a store, and repair a damaged one.

Not here: what a store is (``store.layout``), how it is repaired (``store.maintenance.repair``).
"""

from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ktrdr_pipelines.cli.output import AsJson, counted, note, say, say_json
from ktrdr_pipelines.errors import UniverseError, UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ktrdr_pipelines.app.workspace import Workspace
    from ktrdr_pipelines.store.maintenance.inspection import Quarantined
    from ktrdr_pipelines.store.maintenance.repair import RepairReport


def init(
    origin: Annotated[
        str | None,
        typer.Option(
            metavar="ib|simulated",
            help="The origin of the bars. [default: that of the first bars saved]",
        ),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="The data folder. [default: KTRDR_DATA, else data beside workspace.yaml]",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Create a store in the data folder. A folder that is a store already keeps its contents.

    Exit codes: 0 done, 1 the folder cannot be written or has another origin, 2 bad usage.
    """
    from ktrdr_pipelines.app.setup import UNIVERSE_EXAMPLE, make_workspace
    from ktrdr_pipelines.domain.instruments import Origin
    from ktrdr_pipelines.settings import data_folder, effective_settings, load_settings

    settings = load_settings()
    folder = data_folder(settings) if data is None else data.expanduser().absolute()
    allowed = [Origin.IB, Origin.SIMULATED]
    if origin is not None and origin not in allowed:
        hint = f"Allowed are {', '.join(allowed)}"
        raise UsageError(f"--origin {origin}", reason="no such origin", hint=hint)
    wanted = None if origin is None else Origin(origin)
    own = effective_settings(flags={"ktrdr_data": folder})
    workspace, was_made = make_workspace(own, folder, wanted, example=UNIVERSE_EXAMPLE)
    if as_json:
        say_json(
            {
                "store": str(workspace.layout.root),
                "universe": str(workspace.layout.universe),
                "universe_made": was_made,
                "catalog": str(workspace.layout.catalog),
                "symbols": list(workspace.universe.instruments),
            }
        )
        return
    symbols = counted(len(workspace.universe.instruments), "symbol")
    say(f"The store is {workspace.layout.root}, {symbols} in {workspace.layout.universe}.")
    if folder != settings.ktrdr_data and data is not None:
        say(f"  export KTRDR_DATA={folder}   makes every command use this folder")
    say("Next:")
    say(f"  edit {workspace.layout.universe}   to choose the symbols")
    say("  ktrdr health   to check whether the gateway responds")
    say("  ktrdr load AAPL 1d   to load bars, or ktrdr up   to let Dagster keep them complete")


def repair(
    seal: Annotated[
        bool,
        typer.Option("--seal", help="Also add digests to files that earlier versions wrote."),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Rebuild what can be rebuilt from the bar files, and quarantine files that cannot be trusted.

    A digest lets `ktrdr verify` detect every changed bit of a file. Files that earlier versions
    wrote get one when they are next written, or now with --seal.

    Exit codes: 0 done (quarantined files are listed), 1 failed, 2 bad usage.
    """
    from ktrdr_pipelines.settings import data_folder, load_settings
    from ktrdr_pipelines.store.layout import open_store
    from ktrdr_pipelines.store.maintenance.odd_paths import quarantine_odd_paths
    from ktrdr_pipelines.store.maintenance.repair import repair as repair_store

    # Without the store's own settings: something else may lie in place of their file.
    odd = quarantine_odd_paths(open_store(data_folder(load_settings())))
    workspace = _workspace_after(odd)
    instruments = list(workspace.universe.instruments.values())
    report = repair_store(workspace.layout, instruments, workspace.clock.real_now(), seal=seal)
    report = replace(report, quarantined=(*odd, *report.quarantined))
    workspace.renew_catalog()
    if as_json:
        say_json(asdict(report))
    else:
        _print_report(report)
        for path in report.restored:
            say(f"{path}: restored from the ledger")
        for text in report.lost:
            note(f"Warning: adjustments are lost, so queries refuse the bars of {text}")


def _workspace_after(odd: "Sequence[Quarantined]") -> "Workspace":
    """Open the store to repair it, without symbols if its universe was quarantined for good."""
    from ktrdr_pipelines.app.workspace import Workspace
    from ktrdr_pipelines.domain.universe.universe import Universe

    workspace = Workspace.open()
    try:
        _ = workspace.universe
    except UniverseError as error:
        if all(one.was != workspace.layout.universe for one in odd):
            for one in odd:  # the repair ends here, so what was moved is reported now
                note(f"quarantined: {one}")
            raise
        note(f"Warning: {error}")
        return Workspace(workspace.settings, workspace.layout, universe=Universe({}))
    return workspace


def _print_report(report: "RepairReport") -> None:
    if report.finished:
        say(f"finished the {report.finished}, which had been interrupted")
    say(f"{counted(report.files, 'file')} intact; ledger and catalog are rebuilt")
    for one in report.quarantined:
        say(f"quarantined: {one}")
    for path in report.fixed:
        say(f"{path}: rewritten; bars that it has lost are missing again")
    for path in report.distrusted:
        say(
            f"{path}: written by another program, with implausible values; the bars are kept, "
            "and the next load requests them again"
        )
    if report.findings:
        bars = counted(report.findings, "bar")
        say(f"{bars} with implausible values, kept as the gateway's; ktrdr verify lists them")
    if report.sealed:
        say(f"added digests to {counted(len(report.sealed), 'file')} of earlier versions")
    if report.leftovers:
        say(f"removed {counted(len(report.leftovers), 'unfinished file')}")
    if report.quarantined_ledger:
        say(f"the ledger was damaged; it was moved to {report.quarantined_ledger}")
    if report.forgotten:
        say(f"removed {counted(report.forgotten, 'old request')} from the audit")
