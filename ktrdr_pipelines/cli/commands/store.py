"""``ktrdr init`` and ``ktrdr repair``: making a store, and making it whole again.

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
    from ktrdr_pipelines.domain.instruments import Origin
    from ktrdr_pipelines.store.maintenance.inspection import Quarantined
    from ktrdr_pipelines.store.maintenance.repair import RepairReport


def init(
    origin: Annotated[
        str | None,
        typer.Option(
            metavar="ib|simulated",
            help="Where the bars will come from. [default: the first gateway decides]",
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
    """Make the data folder a store; one that is a store already keeps what it has.

    Exit codes: 0 done, 1 the folder cannot be written or is of another origin, 2 bad usage.
    """
    from ktrdr_pipelines.app.setup import UNIVERSE_EXAMPLE, make_workspace
    from ktrdr_pipelines.settings import data_folder, load_settings

    settings = load_settings()
    folder = data_folder(settings) if data is None else data.expanduser().absolute()
    workspace, was_made = make_workspace(
        settings, folder, _origin(origin), example=UNIVERSE_EXAMPLE
    )
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
    say(f"  edit {workspace.layout.universe}   to say which symbols you want")
    say("  ktrdr health   to see whether the gateway answers")
    say("  ktrdr load AAPL 1d   to load bars, or ktrdr up   to let Dagster keep all complete")


def repair(
    seal: Annotated[
        bool,
        typer.Option("--seal", help="Also give digests to files that earlier versions wrote."),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Rebuild from the bar files whatever can be rebuilt, and quarantine what cannot be trusted.

    With digests `ktrdr verify` sees every changed bit of a file. Files that earlier versions wrote
    get them when they are next written, or by --seal.

    Exit codes: 0 done (it says what was quarantined), 1 failed, 2 bad usage.
    """
    from ktrdr_pipelines.app.workspace import renew_catalog
    from ktrdr_pipelines.settings import data_folder, load_settings
    from ktrdr_pipelines.store.layout import open_store
    from ktrdr_pipelines.store.maintenance.odd_paths import quarantine_odd_paths
    from ktrdr_pipelines.store.maintenance.repair import repair as repair_store

    odd = quarantine_odd_paths(open_store(data_folder(load_settings())))
    workspace = _workspace_after(odd)
    instruments = list(workspace.universe.instruments.values())
    report = repair_store(workspace.layout, instruments, workspace.clock.real_now(), seal=seal)
    report = replace(report, quarantined=(*odd, *report.quarantined))
    renew_catalog(workspace.layout, workspace.universe, workspace.settings)
    if as_json:
        say_json(asdict(report))
    else:
        _tell_repaired(report)


def _workspace_after(odd: "Sequence[Quarantined]") -> "Workspace":
    """Open the store to repair it, without symbols where its universe was quarantined for good."""
    from ktrdr_pipelines.app.workspace import Workspace, open_workspace
    from ktrdr_pipelines.domain.universe.universe import Universe
    from ktrdr_pipelines.settings import data_folder, load_settings
    from ktrdr_pipelines.store.layout import open_store

    try:
        return open_workspace()
    except UniverseError as error:
        settings = load_settings()
        layout = open_store(data_folder(settings))
        if all(one.was != layout.universe for one in odd):
            for one in odd:  # the repair ends here, and what was moved is told all the same
                note(f"quarantined: {one}")
            raise
        note(f"Warning: {error}")
        return Workspace(settings, layout, Universe({}), error)


def _tell_repaired(report: "RepairReport") -> None:
    if report.finished:
        say(f"finished the {report.finished}, which had been cut short")
    say(f"{counted(report.files, 'file')} whole; ledger and catalog are rebuilt")
    for one in report.quarantined:
        say(f"quarantined: {one}")
    for path in report.fixed:
        say(f"{path}: written anew; bars that it has lost are missing again")
    for path in report.distrusted:
        say(
            f"{path}: another program wrote it, with implausible values in it; the bars are kept, "
            "and the next load requests them again"
        )
    if report.findings:
        bars = counted(report.findings, "bar")
        say(f"{bars} with implausible values taken for the gateway's; ktrdr verify lists them")
    if report.sealed:
        say(f"{counted(len(report.sealed), 'file')} of earlier versions given digests")
    if report.leftovers:
        say(f"removed {counted(len(report.leftovers), 'unfinished file')}")
    if report.quarantined_ledger:
        say(f"the ledger was damaged; the old one is {report.quarantined_ledger}")
    if report.forgotten:
        say(f"{counted(report.forgotten, 'old request')} dropped from the audit")


def _origin(text: str | None) -> "Origin | None":
    from ktrdr_pipelines.domain.instruments import Origin

    allowed = [Origin.IB, Origin.SIMULATED]
    if text is not None and text not in allowed:
        hint = f"Allowed are {', '.join(allowed)}"
        raise UsageError(f"--origin {text}", reason="no such origin", hint=hint)
    return None if text is None else Origin(text)
