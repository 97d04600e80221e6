"""``ktrdr init``, ``ktrdr repair`` and ``ktrdr verify``: create, repair and check a store.

Not here: what a store is (``store.layout``), how it is repaired (``store.maintenance.repair``),
reading and counting what it holds (``gaps.verification``).
"""

from collections.abc import Iterable, Sequence, Sized
from dataclasses import replace
from itertools import groupby
from typing import TYPE_CHECKING, Annotated, Final

import typer

from ktrdr_pipelines.app.selection import chosen_series, is_everything
from ktrdr_pipelines.cli.arguments import DataOption, SomeSymbols, note_symbol_named_all
from ktrdr_pipelines.cli.output import (
    AsJson,
    adjustment_text,
    counted,
    note,
    say,
    say_json,
    say_table,
    say_wrapped,
    unconfirmed_text,
)
from ktrdr_pipelines.errors import ExitCode, UniverseError, UsageError

if TYPE_CHECKING:
    from ktrdr_pipelines.app.workspace import Workspace
    from ktrdr_pipelines.gaps.verification import Certificate
    from ktrdr_pipelines.store.maintenance.inspection import Quarantined
    from ktrdr_pipelines.store.maintenance.repair import RepairReport


MOST_CERTIFICATES: Final = 40
"""Series of which certificates are printed; of more, only totals, and those with damage."""


def init(
    origin: Annotated[
        str | None,
        typer.Option(
            metavar="ib|simulated",
            help="The origin of the bars. [default: that of the first bars saved]",
        ),
    ] = None,
    data: DataOption = None,
    as_json: AsJson = False,
) -> None:
    """Create a store in the data folder. A folder that is a store already keeps its contents.

    Exit codes: 0 done, 1 the folder cannot be written or has another origin, 2 bad usage.
    """
    from ktrdr_pipelines.app.setup import UNIVERSE_EXAMPLE, make_workspace
    from ktrdr_pipelines.app.views.store_documents import InitDocument
    from ktrdr_pipelines.domain.instruments import Origin
    from ktrdr_pipelines.settings import data_folder, effective_settings, load_settings

    settings = load_settings()
    folder = data_folder(settings)
    allowed = [Origin.IB, Origin.SIMULATED]
    if origin is not None and origin not in allowed:
        hint = f"Allowed are {', '.join(allowed)}"
        raise UsageError(f"--origin {origin}", reason="no such origin", hint=hint)
    wanted = None if origin is None else Origin(origin)
    own = effective_settings(flags={"ktrdr_data": folder})
    workspace, was_made = make_workspace(own, folder, wanted, example=UNIVERSE_EXAMPLE)
    if as_json:
        say_json(
            InitDocument(
                complete=True,
                exit_code=int(ExitCode.DONE),
                store=str(workspace.layout.root),
                universe=str(workspace.layout.universe),
                universe_made=was_made,
                catalog=str(workspace.layout.catalog),
                symbols=tuple(workspace.universe.instruments),
            )
        )
        return
    symbols = counted(len(workspace.universe.instruments), "symbol")
    say(f"The store is {workspace.layout.root}, {symbols} in {workspace.layout.universe}.")
    if data is not None:
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
    from ktrdr_pipelines.app.views.store_documents import RepairDocument
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
        say_json(RepairDocument.of(report))
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


_CERTIFICATE: Final = {
    "timeframe": "left",
    "first": "left",
    "last": "left",
    "expected": "right?",
    "have": "right?",
    "empty": "right?",
    "explained": "right?",
    "unexplained": "right",
    "bars": "right",
    "revisions": "right?",
    "digest": "left",
    "verified before": "left?",
}
_BY_TIMEFRAME: Final = {
    "timeframe": "left",
    "series": "right",
    "corrupt": "right",
    "with gaps": "right",
    "expected": "right",
    "unexplained": "right",
    "bars": "right",
}
_FINDINGS_AT_MOST: Final = 5


def verify(
    symbols: SomeSymbols = None,
    every: Annotated[
        bool,
        typer.Option(
            "--all", help=f"Print every certificate, also if there are over {MOST_CERTIFICATES}."
        ),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Read every bar file whole and certify each symbol: what is stored, what is not, and why.

    Order, uniqueness, prices, session dates and the bars of each session are checked against
    footers, ledger and calendars. Bars with implausible values that the gateway returned twice
    are listed as findings, not as damage. The digest covers the bars only: two stores that hold
    the same bars of a series have the same digest.

    Adjustments of each symbol are listed. So are stored bars that the gateway returned again at
    other prices or in another unit, and bars on an unconfirmed price basis; they are not damage.
    Files of symbols that are no longer in the universe, and of imported bars, are read too, and
    listed if damaged.

    Exit codes: 0 everything is intact and explained, 1 something is corrupt, 2 bad usage,
    3 something is unexplained, the gateway returned stored bars again at other prices, or bars are
    on an unconfirmed price basis.
    """
    from ktrdr_pipelines.app.views.store_documents import VerificationDocument
    from ktrdr_pipelines.app.workspace import Workspace
    from ktrdr_pipelines.cli.output import warn_of_problem
    from ktrdr_pipelines.gaps.verification import damaged_imported, damaged_others
    from ktrdr_pipelines.gaps.verification import verify as read_whole

    workspace = Workspace.open()
    real_now = workspace.clock.real_now()
    warn_of_problem(workspace)
    note_symbol_named_all(workspace, symbols)
    series = chosen_series(workspace.universe, workspace.store, symbols, None)
    index = workspace.gap_index()
    found = read_whole(index, series, workspace.now, real_now=real_now)
    certificates = []
    is_whole = is_everything(workspace.universe, symbols)
    is_summary = not every and is_whole and len(series) > MOST_CERTIFICATES
    for symbol, own in groupby(found, key=lambda one: one.found.series.symbol):
        of_symbol = list(own)
        certificates += of_symbol
        if not as_json:
            if not is_summary or not all(one.is_intact for one in of_symbol):
                _print_certificates(symbol, of_symbol)
            _print_symbol(symbol, of_symbol)
    others = (
        damaged_others(workspace.store, workspace.universe.instruments, real_now)
        if is_whole
        else {}
    )
    chosen = None if is_whole else {one.symbol for one in series}
    others |= damaged_imported(workspace.layout, chosen, real_now)
    code = ExitCode.FAILED if others else exit_code_of(certificates)
    if as_json:
        say_json(VerificationDocument.of(certificates, others, verified_at=real_now, code=code))
    else:
        for name, damage in others.items():
            whose = "imported" if name.startswith("imported/") else "not in the universe"
            note(f"{name}, {whose}: {damage}. Hint: run `ktrdr repair`")
        if is_summary:
            _print_by_timeframe(certificates)
        _print_totals(certificates, others)
    raise typer.Exit(code)


def exit_code_of(certificates: "Iterable[Certificate]") -> ExitCode:
    """Return FAILED for damage, else INCOMPLETE for what is open, else DONE."""
    every = list(certificates)
    if not all(one.is_intact and one.found.error is None for one in every):
        return ExitCode.FAILED
    is_open = any(one.found.gaps or one.found.disagreements or not one.is_sound for one in every)
    return ExitCode.INCOMPLETE if is_open else ExitCode.DONE


def _print_certificates(symbol: str, own: "Sequence[Certificate]") -> None:
    say(f"{symbol}  {own[0].found.series.instrument.what_to_show}, sessions by timeframe")
    say_table(_CERTIFICATE, map(_certificate_row, own))


def _print_symbol(symbol: str, own: "Sequence[Certificate]") -> None:
    """Print what is to be said of a symbol besides its certificates."""
    for adjustment in max((one.adjustments for one in own), key=len):
        say(f"{symbol}: {adjustment_text(adjustment)}")
    for one in own:
        for wrong in one.content.wrong:
            note(f"{one.found.series}: {wrong}")
        if one.content.findings:
            _print_findings(one)
        if one.found.error is not None and one.is_intact:
            note(f"Error: {one.found.error}")
        if one.content.outside:
            bars = counted(one.content.outside, "bar")
            say(f"{one.found.series}: {bars} outside the known sessions, kept as returned")
        if one.content.unconfirmed:
            say(unconfirmed_text(one.found.series, one.content.unconfirmed))
        if (uncovered := one.content.uncovered - one.content.unconfirmed) > 0:
            bars = counted(uncovered, "bar")
            say(f"{one.found.series}: {bars} that no response has covered")
        for found in (*one.found.disagreements, *one.found.volume_jumps):
            say_wrapped(f"{one.found.series}: {found.text_for(one.found.series)}")


def _print_findings(one: "Certificate") -> None:
    from ktrdr_pipelines.domain.bars import moment

    found = one.content.findings
    bars = counted(len(found), "bar")
    say(f"{one.found.series}: {bars} with implausible values, kept as the gateway returned them:")
    for finding in found[:_FINDINGS_AT_MOST]:
        say(f"  {moment(finding.ts):%Y-%m-%d %H:%M}Z {finding.kind}: {finding.detail}")
    if len(found) > _FINDINGS_AT_MOST:
        say(f"  and {len(found) - _FINDINGS_AT_MOST:,} more; --json lists all")


def _certificate_row(one: "Certificate") -> tuple[object, ...]:
    before, sessions = "never", one.sessions
    if one.before is not None:
        same = one.before.digest == one.content.digest.text
        before = f"{one.before.verified_at:%Y-%m-%d %H:%MZ}, "
        before += "the same" if same else "changed since"
    counts = (
        sessions.expected,
        sessions.have,
        sessions.empty,
        sessions.explained,
        sessions.unexplained,
        one.content.bars,
        one.revisions,
    )
    return (
        one.found.series.timeframe,
        one.found.first or "",
        one.found.last or "",
        *(f"{count:,}" for count in counts),
        one.content.digest.text[:12] if one.is_intact else "corrupt",
        before,
    )


def _print_by_timeframe(certificates: "Sequence[Certificate]") -> None:
    ordered = sorted(certificates, key=lambda one: one.found.series.timeframe.seconds)
    rows = []
    for timeframe, group in groupby(ordered, key=lambda one: one.found.series.timeframe):
        own = list(group)
        counts = (
            len(own),
            sum(not one.is_intact for one in own),
            sum(bool(one.found.gaps) for one in own),
            sum(one.sessions.expected for one in own),
            sum(one.sessions.unexplained for one in own),
            sum(one.content.bars for one in own),
        )
        rows.append((timeframe, *(f"{count:,}" for count in counts)))
    say_table(_BY_TIMEFRAME, rows)
    say_wrapped("`ktrdr verify SYMBOL` prints certificates of one symbol, `ktrdr verify --all` all")


def _print_totals(certificates: "Sequence[Certificate]", others: Sized) -> None:
    """Print the totals: what was read, and how much of it is not as it should be."""
    corrupt = sum(not one.is_intact for one in certificates)
    lacking = sum(bool(one.found.gaps) for one in certificates)
    differing = sum(bool(one.found.disagreements) for one in certificates)
    unconfirmed = sum(bool(one.content.unconfirmed) for one in certificates)
    parts = [
        f"{counted(number, 'series', 'series')} {text}"
        for number, text in (
            (corrupt, "corrupt; ktrdr repair quarantines damaged bar files"),
            (lacking, "with gaps; ktrdr gaps lists them"),
            (differing, "with bars returned again at other prices"),
            (unconfirmed, "with bars on an unconfirmed price basis"),
        )
        if number
    ]
    if others:
        parts.append(f"{counted(len(others), 'damaged file')} of other or imported bars")
    for part in parts:
        say(part)
    bars = counted(sum(one.content.bars for one in certificates), "bar")
    verdict = "see above" if parts else "everything is intact, and nothing is unexplained"
    series = counted(len(certificates), "series", "series")
    say(f"Total: {bars} in {series} read and checked: {verdict}")
