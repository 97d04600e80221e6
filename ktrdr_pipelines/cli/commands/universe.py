"""``ktrdr universe``: check the universe, and edit it while keeping the user's own text.

Not here: the edits (``app.universe_edits``), moving bars (``store.maintenance.rename``,
``store.maintenance.restore``), what a change means (``gaps.universe_diff``).
"""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ktrdr_pipelines.cli.arguments import with_files
from ktrdr_pipelines.cli.completion import complete_symbol, complete_symbols
from ktrdr_pipelines.cli.output import AsJson, counted, note, say, say_json, say_wrapped
from ktrdr_pipelines.clock import system_now
from ktrdr_pipelines.errors import ExitCode, UsageError

if TYPE_CHECKING:
    from ktrdr_pipelines.app.views.universe_documents import FieldDocuments, UniverseCheckDocument
    from ktrdr_pipelines.app.workspace import Workspace
    from ktrdr_pipelines.defs.sensors.universe_sensor import PartitionChange
    from ktrdr_pipelines.domain.universe.universe import Universe
    from ktrdr_pipelines.gaps.universe_diff import Change
    from ktrdr_pipelines.store.maintenance.rename_journal import Move

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Check and edit the universe (universe.yaml in the data folder).",
)
_FIELDS = {"allow_extra_args": True, "ignore_unknown_options": True}
Symbol = Annotated[
    str,
    typer.Argument(
        metavar="SYMBOL", help="A symbol of the universe.", autocompletion=complete_symbol
    ),
]


@app.command(short_help="Check whether the universe is valid, and what it would change")
def check(
    file: Annotated[
        Path | None,
        typer.Argument(
            metavar="FILE", help="The file to check. [default: the store's universe.yaml]"
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Check whether a universe is valid, and show derived fields and what it would change.

    Exit codes: 0 valid, 1 a symbol names another instrument than its bars on disk (they are never
    mixed: loading the symbol would be refused), 2 malformed, or bad usage.
    """
    from ktrdr_pipelines.app.workspace import Workspace, universe_file
    from ktrdr_pipelines.defs.instance import symbols_held
    from ktrdr_pipelines.defs.sensors.universe_sensor import change_from
    from ktrdr_pipelines.gaps.universe_diff import universe_changes
    from ktrdr_pipelines.store.universe_file import load_universe

    workspace = Workspace.open()
    layout = workspace.layout
    universe = load_universe(layout.universe if file is None else file)
    last_good = universe_file(layout).last_good
    before = load_universe(last_good) if last_good.exists() else None
    changes = universe_changes(workspace.store, universe, before)
    held = symbols_held(layout)
    partition_changes = (change_from(symbols, universe, one) for one, symbols in held.items())
    partitions = [change for change in partition_changes if change]
    if as_json:
        say_json(_document(universe, changes, partitions))
    else:
        _say_check(universe, changes, partitions)
    if _are_refused(changes):
        raise typer.Exit(ExitCode.FAILED)


@app.command(short_help="Add symbols, keeping the file's text", context_settings={**_FIELDS})
def add(
    context: typer.Context,
    symbol: Annotated[
        str,
        typer.Argument(
            metavar="SYMBOL[,SYMBOL...]",
            help="The new symbols; @FILE for those in a file.",
            callback=with_files,
        ),
    ],
    as_json: AsJson = False,
) -> None:
    """Add symbols to the universe, all or none; every other byte of the file is kept.

    Give fields as options, by their names in the file: --timeframes 1h,1d --start 2021-01-01
    --sec-type CASH. Fields that are not given are derived, and shown.

    Exit codes: 0 added, 1 the file cannot be written, 2 bad usage; then nothing is changed.
    """
    from ktrdr_pipelines.app.universe_edits import add_symbols, fields_of, symbols_in
    from ktrdr_pipelines.app.views.universe_documents import AddedDocument
    from ktrdr_pipelines.app.workspace import Workspace

    if symbol.startswith("--"):
        raise UsageError(
            f"{symbol} in place of the symbol",
            hint="Put the symbol first, as in: ktrdr universe add TSLA --timeframes 1h",
        )
    symbols, fields = symbols_in(symbol), fields_of(context.args)
    workspace = Workspace.open()
    universe = add_symbols(workspace, symbols, fields)
    if as_json:
        documents = _documents_of(universe, symbols)
        document = AddedDocument(
            complete=True,
            exit_code=0,
            added=",".join(symbols),
            universe=str(workspace.layout.universe),
            symbols=documents,
            fields=documents[symbols[0]] if len(symbols) == 1 else {},
        )
        say_json(document)
        return
    _say_fields(universe, symbols, "added {} to " + str(workspace.layout.universe))
    say("A running `ktrdr up` starts to load it within a minute; otherwise run: ktrdr update")


@app.command("set", short_help="Set or remove fields of symbols, keeping the file's text")
def set_(
    symbol: Annotated[
        str,
        typer.Argument(
            metavar="SYMBOL[,SYMBOL...]",
            help="Symbols of the universe; @FILE for those in a file.",
            callback=with_files,
            autocompletion=complete_symbols,
        ),
    ],
    assignments: Annotated[
        list[str],
        typer.Argument(
            metavar="KEY=VALUE...", help="Fields by their names in the file; KEY= removes one."
        ),
    ],
    as_json: AsJson = False,
) -> None:
    """Set fields of symbols, such as ended=true or timeframes=1h,1d; KEY= removes a field.

    Exit codes: 0 set, 1 a symbol has bars on disk that would be another instrument's, or the file
    cannot be written, 2 bad usage; then nothing is changed.
    """
    from ktrdr_pipelines.app.universe_edits import change_symbols, fields_in, symbols_in
    from ktrdr_pipelines.app.views.universe_documents import ChangedDocument
    from ktrdr_pipelines.app.workspace import Workspace

    symbols, fields = symbols_in(symbol), fields_in(assignments)
    workspace = Workspace.open()
    universe = change_symbols(workspace, symbols, fields)
    path = workspace.layout.universe
    if as_json:
        documents = _documents_of(universe, symbols)
        say_json(
            ChangedDocument(
                complete=True,
                exit_code=0,
                changed=symbols,
                universe=str(path),
                symbols=documents,
            )
        )
        return
    _say_fields(universe, symbols, "changed {} in " + str(path))


@app.command(short_help="Rename a symbol, with all its bars")
def rename(
    symbol: Symbol,
    new_symbol: Annotated[str, typer.Argument(metavar="NEW", help="The new name.")],
    ib_symbol: Annotated[
        str,
        typer.Option(
            "--symbol",
            metavar="SYMBOL",
            help="IB's symbol from now on, if it is neither the new name nor known by the "
            "contract id.",
        ),
    ] = "",
    as_json: AsJson = False,
) -> None:
    """Rename a symbol: in the universe, on disk, in the ledger and in Dagster.

    The instrument itself does not change: if its contract is known, from its bars or from the
    gateway, the entry gets the id of the contract, by which the gateway finds it whatever its
    symbol is. If the command is killed half-way, run it again, or `ktrdr repair`, to finish the
    rename.

    Exit codes: 0 renamed, 1 it cannot be renamed (a load is using the symbol, the new name has
    bars, a file cannot be read), 2 bad usage.
    """
    from ktrdr_pipelines.app.views.universe_documents import (
        RenamedDocument,
        field_documents,
    )
    from ktrdr_pipelines.app.workspace import Workspace
    from ktrdr_pipelines.store.layout import store_origin
    from ktrdr_pipelines.store.maintenance.rename import rename as rename_in_store
    from ktrdr_pipelines.store.maintenance.rename import require_symbols
    from ktrdr_pipelines.store.maintenance.rename_journal import Move, MoveKind
    from ktrdr_pipelines.sync.discovery.contracts import pinned_contract

    require_symbols(Move(MoveKind.RENAME, symbol, new_symbol))
    workspace = Workspace.open()
    layout = workspace.layout
    finished = _finished(workspace, as_json=as_json)
    if finished is None or (finished.symbol, finished.target) != (symbol, new_symbol):
        contract_id = pinned_contract(workspace.store, symbol, store_origin(layout))
        rename_in_store(
            layout,
            symbol,
            new_symbol,
            system_now(),
            contract_id=contract_id,
            ib_symbol=ib_symbol,
        )
    sets = _finish_rename(workspace, symbol, new_symbol)
    universe = Workspace(workspace.settings, layout).universe
    made = universe.instrument(new_symbol)
    if as_json:
        document = RenamedDocument(
            complete=True,
            exit_code=0,
            renamed=symbol,
            to=new_symbol,
            partition_sets=sets,
            contract_id=made.contract_id,
            fields=field_documents(universe, made),
        )
        say_json(document)
        return
    say(f"renamed {symbol} to {new_symbol} in bars, ledger and universe{_sets(sets)}")
    if made.contract_id is not None:
        say(f"the gateway is asked for contract {made.contract_id}, whatever its symbol is")
    else:
        say(
            f"the gateway is asked for {made.ib_symbol}; if IB has another symbol, run: "
            f"ktrdr universe set {new_symbol} symbol=SYMBOL"
        )


@app.command(short_help="Remove a symbol from the universe; its bars are kept")
def retire(symbol: Symbol, as_json: AsJson = False) -> None:
    """Remove a symbol from the universe, and move its bars out of reach of queries.

    Bars and entry are kept in the folder `retired`, which queries do not read, and the symbol can
    be used for another instrument; `ktrdr universe restore` brings all of it back. To keep the
    bars of a delisted instrument queryable, set ended=true instead.

    Exit codes: 0 retired, 1 it cannot be retired (a load is using the symbol), 2 bad usage.
    """
    from ktrdr_pipelines.app.views.universe_documents import RetiredDocument
    from ktrdr_pipelines.app.workspace import Workspace
    from ktrdr_pipelines.store.maintenance.rename import retire as retire_in_store

    workspace = Workspace.open()
    layout = workspace.layout
    finished = _finished(workspace, as_json=as_json)
    is_done = finished is not None and (finished.kind, finished.symbol) == ("retire", symbol)
    move = finished if is_done else retire_in_store(layout, symbol, system_now())
    assert move is not None  # noqa: S101  (either it was finished just now, or it is new)
    sets = _finish_rename(workspace, symbol, None)
    kept = layout.retired / move.target
    restore_command = f"ktrdr universe restore {move.target}"
    if as_json:
        document = RetiredDocument(
            complete=True,
            exit_code=0,
            retired=symbol,
            kept_in=str(kept) if kept.is_dir() else None,
            partition_sets=sets,
            restore=restore_command,
        )
        say_json(document)
        return
    say(f"removed {symbol} from the universe{_sets(sets)}")
    has_bars = any(kept.rglob("*.parquet"))
    say(f"its bars are kept in {kept}" if has_bars else "it had no bars")
    say(f"to restore it: {restore_command}")


@app.command(short_help="Restore a retired symbol, with its bars")
def restore(
    symbol: Annotated[
        str,
        typer.Argument(
            metavar="SYMBOL",
            help="A retired symbol; SYMBOL@N is one of several that had this name.",
        ),
    ],
    new_symbol: Annotated[
        str | None,
        typer.Option("--as", metavar="NEW", help="Another name, if its own is in use."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Restore a retired symbol: its entry in the universe, its bars, and its partitions.

    If the command is killed half-way, run it again, or `ktrdr repair`, to finish it.

    Exit codes: 0 restored, 1 it cannot be restored (the name is another instrument's by now, a
    file cannot be read), 2 bad usage.
    """
    from ktrdr_pipelines.app.views.universe_documents import (
        RestoredDocument,
        field_documents,
    )
    from ktrdr_pipelines.app.workspace import Workspace
    from ktrdr_pipelines.defs.instance import add_partitions
    from ktrdr_pipelines.store.maintenance.rename import retired_symbol
    from ktrdr_pipelines.store.maintenance.restore import restore as restore_in_store

    workspace = Workspace.open()
    layout = workspace.layout
    move = _finished(workspace, as_json=as_json)
    is_done = (
        move is not None
        and move.kind == "restore"
        and symbol in {move.symbol, retired_symbol(move.symbol)}
        and new_symbol in {None, move.target}
    )
    if move is None or not is_done:
        move = restore_in_store(layout, symbol, system_now(), new_symbol=new_symbol)
    restored = Workspace(workspace.settings, layout)  # reads the universe after the move
    restored.renew_catalog()
    universe = restored.universe
    made = universe.instrument(move.target)
    sets = add_partitions(layout, move.target, made.timeframes)
    if as_json:
        document = RestoredDocument(
            complete=True,
            exit_code=0,
            restored=move.target,
            retired_as=move.symbol,
            partition_sets=sets,
            fields=field_documents(universe, made),
        )
        say_json(document)
        return
    say(f"restored {move.target} in universe, bars and ledger{_sets(sets)}")


def _documents_of(universe: "Universe", symbols: list[str]) -> "dict[str, FieldDocuments]":
    from ktrdr_pipelines.app.views.universe_documents import field_documents

    return {one: field_documents(universe, universe.instrument(one)) for one in symbols}


def _say_fields(universe: "Universe", symbols: list[str], title: str) -> None:
    """Print all fields of one symbol, or a row for each of several."""
    from ktrdr_pipelines.cli.commands.status import say_symbols

    made = [universe.instrument(one) for one in symbols]
    if len(made) > 1:
        say(title.replace("{}", counted(len(made), "symbol")) + ":")
        say_symbols(universe, made)
        return
    say(title.replace("{}", symbols[0]) + ":")
    for name, value in universe.describe(made[0]).items():
        say(f"  {name:<17}{value}")


def _finished(workspace: "Workspace", *, as_json: bool) -> "Move | None":
    """Finish an interrupted rename, retirement or restoration, if there is one, and return it."""
    from ktrdr_pipelines.store.maintenance.rename import finish_move

    move = finish_move(workspace.layout, workspace.ledger)
    if move is not None:
        if move.kind != "restore":
            _finish_rename(workspace, move.symbol, move.target if move.kind == "rename" else None)
        if not as_json:
            note(f"finished the {move}, which had been interrupted")
    return move


def _finish_rename(workspace: "Workspace", symbol: str, new_symbol: str | None) -> int:
    """Apply a move to the catalog and Dagster; return the number of changed partition sets."""
    from ktrdr_pipelines.app.workspace import Workspace
    from ktrdr_pipelines.defs.instance import move_partitions

    moved = Workspace(workspace.settings, workspace.layout)  # reads the universe after the move
    moved.renew_catalog()
    return move_partitions(moved.layout, symbol, new_symbol)


def _document(
    universe: "Universe", changes: "list[Change]", partitions: "list[PartitionChange]"
) -> "UniverseCheckDocument":
    from ktrdr_pipelines.app.views.universe_documents import (
        PartitionChangeDocument,
        UniverseChangeDocument,
        UniverseCheckDocument,
        symbol_documents,
    )

    exit_code = ExitCode.FAILED if _are_refused(changes) else ExitCode.DONE
    return UniverseCheckDocument(
        complete=exit_code is ExitCode.DONE,
        exit_code=int(exit_code),
        universe=universe.name,
        is_valid=True,
        symbols=symbol_documents(universe),
        changes=[UniverseChangeDocument.model_validate(asdict(change)) for change in changes],
        partitions={
            str(one.timeframe): PartitionChangeDocument(
                added=list(one.added), removed=list(one.removed)
            )
            for one in partitions
        },
    )


def _are_refused(changes: "list[Change]") -> bool:
    from ktrdr_pipelines.gaps.universe_diff import ChangeKind

    return any(change.kind is ChangeKind.REFUSED for change in changes)


def _say_check(
    universe: "Universe", changes: "list[Change]", partitions: "list[PartitionChange]"
) -> None:
    from ktrdr_pipelines.cli.commands.status import say_symbols

    say(f"{universe.name} is valid: {counted(len(universe.instruments), 'symbol')}")
    say_symbols(universe)
    named = [
        f"{symbol} is {one.ib_symbol}"
        for symbol, one in universe.instruments.items()
        if one.sec_type in {"STK", "IND"} and ("." in symbol or one.ib_symbol != symbol.upper())
    ]
    if named:
        say(f"IB's symbols: {', '.join(named)}; `symbol` in an entry sets another one")
    same: dict[tuple[str, str], list[str]] = {}  # one edit often changes many symbols alike
    for change in changes:
        hint = f". {change.hint}" if change.hint else ""
        same.setdefault((change.kind, f"{change.text}{hint}"), []).append(change.symbol)
    for (kind, text), symbols in same.items():
        say_wrapped(f"{kind}: {', '.join(symbols)}: {text}")
    for one in partitions:
        signs = [f"+{symbol}" for symbol in one.added] + [f"-{symbol}" for symbol in one.removed]
        say(f"Dagster's partitions of {one.timeframe} will change: {' '.join(signs)}")
    if not changes and not partitions:
        say("Nothing changes.")


def _sets(number: int) -> str:
    """Return what to say of changed sets of partitions; nothing if Dagster has none of them."""
    return f"; {counted(number, 'set')} of Dagster's partitions changed" if number else ""
