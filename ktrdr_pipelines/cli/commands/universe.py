"""``ktrdr universe``: check the universe, and edit it while keeping the user's own text.

Not here: the edits (``domain.universe.editing``), moving bars (``store.maintenance.rename``), what
a change means (``gaps.universe_diff``).
"""

import codecs
import shlex
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ktrdr_pipelines.cli.output import AsJson, counted, note, say, say_json
from ktrdr_pipelines.clock import system_now
from ktrdr_pipelines.errors import ExitCode, UsageError

if TYPE_CHECKING:
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
_SET = " (set)"
_FIELDS = {"allow_extra_args": True, "ignore_unknown_options": True}
Symbol = Annotated[str, typer.Argument(metavar="SYMBOL", help="A symbol of the universe.")]


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
    from ktrdr_pipelines.gaps.universe_diff import ChangeKind, universe_changes
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
    if any(change.kind is ChangeKind.REFUSED for change in changes):
        raise typer.Exit(ExitCode.FAILED)


@app.command(short_help="Add a symbol, keeping the file's text", context_settings={**_FIELDS})
def add(
    context: typer.Context,
    symbol: Annotated[str, typer.Argument(metavar="SYMBOL", help="The new symbol.")],
    as_json: AsJson = False,
) -> None:
    """Add a symbol to the universe; every other byte of the file is kept.

    Give fields as options, by their names in the file: --timeframes 1h,1d --start 2021-01-01
    --sec-type CASH. Fields that are not given are derived, and shown.

    Exit codes: 0 added, 1 the file cannot be written, 2 bad usage; then nothing is changed.
    """
    from ktrdr_pipelines.app.workspace import Workspace
    from ktrdr_pipelines.domain.universe.editing import add_symbol
    from ktrdr_pipelines.domain.universe.universe import parse_universe
    from ktrdr_pipelines.store.files import write_atomically

    if symbol.startswith("--"):
        raise UsageError(
            f"{symbol} in place of the symbol",
            hint="Put the symbol first, as in: ktrdr universe add TSLA --timeframes 1h",
        )
    layout = Workspace.open().layout
    path = layout.universe
    before = _content(path)
    mark = codecs.BOM_UTF8 if before.startswith(codecs.BOM_UTF8) else b""
    text = add_symbol(before.decode("utf-8-sig"), str(path), symbol, fields_of(context.args))
    write_atomically(
        path, lambda file: file.write(mark + text.encode()), before_renaming=layout.require_same
    )
    universe = parse_universe(text, str(path))
    fields = universe.describe(universe.instrument(symbol))
    if as_json:
        say_json({"added": symbol, "universe": str(path), "fields": fields})
        return
    say(f"added {symbol} to {path}:")
    for name, value in fields.items():
        say(f"  {name:<17}{value}")
    say("A running `ktrdr up` starts to load it within a minute; otherwise run: ktrdr update")


@app.command(short_help="Rename a symbol, with all its bars")
def rename(
    symbol: Symbol,
    new_symbol: Annotated[str, typer.Argument(metavar="NEW", help="The new name.")],
    as_json: AsJson = False,
) -> None:
    """Rename a symbol: in the universe, on disk, in the ledger and in Dagster.

    The instrument itself does not change. If the command is killed half-way, run it again, or
    `ktrdr repair`, to finish the rename.

    Exit codes: 0 renamed, 1 it cannot be renamed (a load is using the symbol, the new name has
    bars, a file cannot be read), 2 bad usage.
    """
    from ktrdr_pipelines.app.workspace import Workspace
    from ktrdr_pipelines.store.maintenance.rename import rename as rename_in_store

    workspace = Workspace.open()
    finished = _finished(workspace, as_json=as_json)
    if finished is None or (finished.symbol, finished.target) != (symbol, new_symbol):
        rename_in_store(workspace.layout, symbol, new_symbol, system_now())
    sets = _finish_rename(workspace, symbol, new_symbol)
    if as_json:
        say_json({"renamed": symbol, "to": new_symbol, "partition_sets": sets})
        return
    say(f"renamed {symbol} to {new_symbol} in bars, ledger and universe; {_sets(sets)}")


@app.command(short_help="Remove a symbol from the universe; its bars are kept")
def retire(symbol: Symbol, as_json: AsJson = False) -> None:
    """Remove a symbol from the universe, and move its bars out of reach of queries.

    The bars are kept in the folder `retired`, which queries do not read, and the symbol can be
    used for another instrument. To keep the bars queryable, remove the symbol from universe.yaml
    by hand instead.

    Exit codes: 0 retired, 1 it cannot be retired (a load is using the symbol), 2 bad usage.
    """
    from ktrdr_pipelines.app.workspace import Workspace
    from ktrdr_pipelines.store.maintenance.rename import retire as retire_in_store

    workspace = Workspace.open()
    layout = workspace.layout
    options = _options_of(workspace.universe, symbol)
    finished = _finished(workspace, as_json=as_json)
    is_done = finished is not None and (finished.kind, finished.symbol) == ("retire", symbol)
    move = finished if is_done else retire_in_store(layout, symbol, system_now())
    assert move is not None  # noqa: S101  (either it was finished just now, or it is new)
    sets = _finish_rename(workspace, symbol, None)
    kept = layout.retired / move.target
    if as_json:
        folder = str(kept) if kept.is_dir() else None
        say_json({"retired": symbol, "kept_in": folder, "partition_sets": sets})
        return
    say(f"removed {symbol} from the universe; {_sets(sets)}")
    if kept.is_dir():
        say(f"its bars are kept in {kept}; to restore them:")
        say(
            f"  ktrdr universe add {symbol}{options} && mv {kept} {layout.symbol_folder(symbol)} "
            "&& ktrdr repair"
        )
    else:
        say("it had no bars")


def _options_of(universe: "Universe", symbol: str) -> str:
    """Return the fields that the entry of a symbol sets, as options of ``add``."""
    if symbol not in universe.instruments:
        return ""
    fields = universe.describe(universe.instrument(symbol))
    own = {name: text.removesuffix(_SET) for name, text in fields.items() if text.endswith(_SET)}
    return "".join(
        f" --{name.replace('_', '-')} {shlex.quote(value.replace(', ', ','))}"
        for name, value in own.items()
    )


def fields_of(arguments: list[str]) -> dict[str, str]:
    """Return ``--field value`` and ``--field=value`` as fields of an entry.

    Raises:
        UsageError: a field is unknown, has no value, or is given twice.
    """
    from ktrdr_pipelines.domain.universe.fields import READERS

    fields: dict[str, str] = {}
    rest = list(arguments)
    while rest:
        option, equals, value = rest.pop(0).partition("=")
        name = option.removeprefix("--").replace("-", "_")
        if not option.startswith("--") or name not in READERS:
            known = ", ".join(f"--{one.replace('_', '-')}" for one in READERS)
            raise UsageError(option, reason="not a field of a symbol", hint=f"Fields are {known}")
        if not equals:
            if not rest or rest[0].startswith("--"):
                raise UsageError(option, reason="no value given", hint=f"Write {option} VALUE")
            value = rest.pop(0)
        if name in fields:
            raise UsageError(option, reason="given twice", hint="Give it once")
        fields[name] = value
    return fields


def _content(path: Path) -> bytes:
    """Return the bytes of a valid universe file."""
    from ktrdr_pipelines.store.files import disk_errors
    from ktrdr_pipelines.store.universe_file import load_universe

    load_universe(path)
    with disk_errors(path):
        return path.read_bytes()


def _finished(workspace: "Workspace", *, as_json: bool) -> "Move | None":
    """Finish an interrupted rename or retirement, if there is one, and return it."""
    from ktrdr_pipelines.store.maintenance.rename import finish_move

    move = finish_move(workspace.layout, workspace.ledger)
    if move is not None:
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
) -> dict[str, Any]:
    return {
        "universe": universe.name,
        "well": True,
        "symbols": {symbol: universe.describe(one) for symbol, one in universe.instruments.items()},
        "changes": [asdict(change) for change in changes],
        "partitions": {
            str(one.timeframe): {"added": one.added, "removed": one.removed} for one in partitions
        },
    }


def _say_check(
    universe: "Universe", changes: "list[Change]", partitions: "list[PartitionChange]"
) -> None:
    from ktrdr_pipelines.cli.commands.status import say_symbols

    say(f"{universe.name} is valid: {counted(len(universe.instruments), 'symbol')}")
    say_symbols(universe)
    for change in changes:
        hint = f". {change.hint}" if change.hint else ""
        say(f"{change.kind}: {change.symbol}: {change.text}{hint}")
    for one in partitions:
        signs = [f"+{symbol}" for symbol in one.added] + [f"-{symbol}" for symbol in one.removed]
        say(f"Dagster's partitions of {one.timeframe} will change: {' '.join(signs)}")
    if not changes and not partitions:
        say("Nothing changes.")


def _sets(number: int) -> str:
    return f"{counted(number, 'set')} of Dagster's partitions changed"
