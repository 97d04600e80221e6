"""``ktrdr adjust``: list the adjustments of a symbol, decide on one, and undo it.

The command reads and writes the store only and sends no request to a gateway.

Not here: adjustments that loads find by themselves (``sync.engine.basis_check``), what an
adjustment does to bars (``domain.adjustments``).
"""

import math
from collections.abc import Sequence
from datetime import date, datetime
from typing import TYPE_CHECKING, Annotated, Final

import typer

from ktrdr_pipelines.cli.completion import complete_symbol
from ktrdr_pipelines.cli.output import (
    AsJson,
    counted,
    say,
    say_json,
    say_table,
    typed_text,
)
from ktrdr_pipelines.errors import UsageError

if TYPE_CHECKING:
    from ktrdr_pipelines.app.views.store_documents import AdjustDocument
    from ktrdr_pipelines.app.workspace import Workspace
    from ktrdr_pipelines.domain.adjustments import Adjustment
    from ktrdr_pipelines.domain.timeframes import Timeframe

_EXAMPLE: Final = 'ktrdr adjust AAPL --ratio 0.01 --from 2024-06-10 --note "pence became pounds"'
_COLUMNS: Final = {
    "number": "right",
    "kind": "left",
    "effective": "left",
    "prices times": "right",
    "volumes times": "right",
    "since": "left",
    "removed": "left",
    "evidence or note": "fold",
}


def adjust(
    symbol: Annotated[
        str,
        typer.Argument(
            metavar="SYMBOL",
            help="A symbol of the universe, or one with bars.",
            autocompletion=complete_symbol,
        ),
    ],
    number: Annotated[
        int | None,
        typer.Argument(
            metavar="NUMBER", help="With --remove: which adjustment, if several are in force."
        ),
    ] = None,
    *,
    ratio: Annotated[
        str | None,
        typer.Option(metavar="R", help="The factor of prices, such as 0.25, 1/4 or 100."),
    ] = None,
    since: Annotated[
        str | None,
        typer.Option(
            "--from", metavar="DATE", help="The first session date that is not multiplied."
        ),
    ] = None,
    remark: Annotated[
        str | None,
        typer.Option("--note", metavar="TEXT", help="Why, in your words; it is kept."),
    ] = None,
    volume_ratio: Annotated[
        str | None,
        typer.Option(metavar="V", help="The factor of volumes. [default: 1/R]"),
    ] = None,
    remove: Annotated[
        bool, typer.Option("--remove", help="Undo an adjustment that a person made.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Multiply the bars of a symbol before a date when they are read, or list what is multiplied.

    Splits that IB applied are found by loads and need no command. This is for what ktrdr reports
    and does not decide, such as prices in another unit. Stored bars stay as they are, and the views
    raw, raw_1d and the others show them. Bars that are requested later are not multiplied.

    Without options, the adjustments of the symbol are listed.

    Exit codes: 0 done, 1 the store cannot be read or written, 2 bad usage.
    """
    from ktrdr_pipelines.app.workspace import Workspace

    values = {"--ratio": ratio, "--volume-ratio": volume_ratio, "--from": since, "--note": remark}
    named = [option for option, value in values.items() if value is not None]
    _require_one_purpose(named, number, remove=remove)
    decision = _decision(ratio, volume_ratio, since, remark) if named else None
    workspace = Workspace.open()
    _require_known(workspace, symbol)
    if decision is not None:
        _record(workspace, symbol, decision, as_json=as_json)
    elif remove:
        _remove(workspace, symbol, number, as_json=as_json)
    elif as_json:
        say_json(_document(workspace, symbol))
    else:
        _say_adjustments(workspace, symbol)


_Decision = tuple[float, float, date, str]
"""The factors of prices and of volumes, the first session date not multiplied, and the note."""


def _require_one_purpose(named: Sequence[str], number: int | None, *, remove: bool) -> None:
    if remove and named:
        raise UsageError(
            f"--remove with {', '.join(named)}",
            reason="--remove undoes an adjustment and takes no other option",
            hint="Undo one first, then make another",
        )
    if number is not None and not remove:
        raise UsageError(
            f"the number {number} without --remove",
            reason="a number says which adjustment is to be undone",
            hint=f"Write --remove {number}",
        )


def _decision(
    ratio: str | None, volume_ratio: str | None, since: str | None, remark: str | None
) -> _Decision:
    """Return what the options decide.

    Raises:
        UsageError: an option is missing or invalid.
    """
    from ktrdr_pipelines.domain.planning.date_bounds import parse_bound

    what = "cannot adjust prices"
    for option, value, meaning in (
        ("--ratio", ratio, "by what prices are multiplied"),
        ("--from", since, "from which session date on prices are right as they are"),
        ("--note", (remark or "").strip(), "why"),
    ):
        if not value:
            raise UsageError(
                what,
                reason=f"{option} is missing, which says {meaning}",
                hint=f"Write all of it: {_EXAMPLE}",
            )
    price = _factor("--ratio", ratio or "")
    volume = _factor("--volume-ratio", volume_ratio) if volume_ratio is not None else 1 / price
    if not math.isfinite(volume):
        raise UsageError(
            f"--ratio {ratio}",
            reason="its inverse, the factor of volumes, is no finite number",
            hint="Give a larger one, or --volume-ratio",
        )
    if price == 1 and volume == 1:
        raise UsageError(
            f"--ratio {ratio}",
            reason="prices and volumes times 1 are what they are",
            hint="Give another ratio; with --ratio 1, --volume-ratio alone multiplies volumes",
        )
    effective = parse_bound("--from", since or "").value
    if isinstance(effective, datetime):
        raise UsageError(
            f"--from {since}",
            reason="an instant, not a session date",
            hint="Give the date of the first session that is right as it is, such as 2024-06-10",
        )
    return price, volume, effective, " ".join(typed_text(remark or "").split())


def _factor(option: str, text: str) -> float:
    """Return a factor: a number, or a fraction such as 1/4.

    Raises:
        UsageError: it is no finite number above 0.
    """
    above, slash, below = text.partition("/")
    try:
        value = float(above) / (float(below) if slash else 1.0)
    except (ValueError, ZeroDivisionError, OverflowError):
        value = math.nan
    if not math.isfinite(value) or value <= 0:
        raise UsageError(
            f"{option} {text}",
            reason="not a finite number above 0",
            hint="Give a factor such as 0.25, 1/4 or 100",
        )
    return value


def _require_known(workspace: "Workspace", symbol: str) -> None:
    """Refuse a symbol that is neither in the universe nor has bars.

    Raises:
        UnknownSymbolError: it is such a symbol.
    """
    on_disk = {name for name, _ in workspace.store.series_on_disk()}
    if symbol not in on_disk:
        workspace.universe.instrument(symbol)


def _record(workspace: "Workspace", symbol: str, decision: _Decision, *, as_json: bool) -> None:
    from ktrdr_pipelines.store.rebasing import adjust as record

    price, volume, effective, remark = decision
    added = record(
        workspace.store,
        symbol,
        ratio=price,
        volume_ratio=volume,
        effective=effective,
        note=remark,
        now=workspace.clock.real_now(),
    )
    _require_catalog(workspace)
    bars = _bars_before(workspace, symbol, effective)
    if as_json:
        say_json(_document(workspace, symbol, recorded=added, bars=bars))
        return
    several = [f"{counted(count, 'bar')} of {one}" for one, count in bars.items()]
    say(
        f"{symbol}: bars that the store has now of session dates before {effective} "
        f"({', '.join(several) or 'there are none'}) are multiplied when they are read: prices by "
        f"{price:.6g}, volumes by {volume:.6g}. Bars that are requested later are not."
    )
    say("The files stay as they are; the views raw, raw_1d and the others show them.")
    say(f"`ktrdr adjust {symbol} --remove {added.number}` undoes it.")


def _remove(workspace: "Workspace", symbol: str, number: int | None, *, as_json: bool) -> None:
    from ktrdr_pipelines.store.rebasing import remove_adjustment

    removed = remove_adjustment(
        workspace.store, symbol, number=number, now=workspace.clock.real_now()
    )
    _require_catalog(workspace)
    bars = _bars_before(workspace, symbol, removed.effective)
    if as_json:
        say_json(_document(workspace, symbol, removed=removed, bars=bars))
        return
    say(
        f"{symbol}: adjustment {removed.number} ({removed.note}) is undone: bars of session dates "
        f"before {removed.effective} are no longer multiplied by {removed.ratio:.6g}, and their "
        f"volumes no longer by {removed.volume_ratio:.6g}. The record of it is kept."
    )


def _require_catalog(workspace: "Workspace") -> None:
    """Build the catalog if there is none: the upgrade of a store removes that of before."""
    if not workspace.layout.catalog.is_file():
        workspace.renew_catalog()


def _bars_before(workspace: "Workspace", symbol: str, day: date) -> "dict[Timeframe, int]":
    """Return the numbers of bars of session dates before a date, by timeframe."""
    found = {}
    for timeframe in workspace.layout.timeframes_of(symbol):
        rows = workspace.store.files.of_symbol(symbol, timeframe).values()
        counts = [dict(one.rows_per_session) for one in rows]
        found[timeframe] = sum(n for one in counts for at, n in one.items() if at < day)
    return {timeframe: count for timeframe, count in found.items() if count}


def _say_adjustments(workspace: "Workspace", symbol: str) -> None:
    known = workspace.store.bases.of(symbol)
    if known:
        say_table(_COLUMNS, map(_row, known))
        say("Bars that were requested before an adjustment are multiplied when they are read.")
    else:
        say(f"{symbol} has no adjustment: its bars are read as they are stored.")
    if statement := workspace.ledger.basis_checks.of(symbol).statement:
        say(f"{symbol}: {statement}")


def _row(one: "Adjustment") -> Sequence[object]:
    return (
        one.number,
        one.kind,
        f"{'about ' if one.is_estimated else ''}{one.effective}",
        f"{one.ratio:.6g}",
        f"{one.volume_ratio:.6g}",
        f"{one.found_at:%Y-%m-%d %H:%MZ}",
        "" if one.removed_at is None else f"{one.removed_at:%Y-%m-%d %H:%MZ}",
        one.note or one.evidence,
    )


def _document(
    workspace: "Workspace",
    symbol: str,
    *,
    recorded: "Adjustment | None" = None,
    removed: "Adjustment | None" = None,
    bars: "dict[Timeframe, int] | None" = None,
) -> "AdjustDocument":
    from ktrdr_pipelines.app.views.store_documents import AdjustDocument

    statement = workspace.ledger.basis_checks.of(symbol).statement
    known = workspace.store.bases.of(symbol)
    return AdjustDocument.of(
        symbol, known, statement, recorded=recorded, removed=removed, bars=bars
    )
