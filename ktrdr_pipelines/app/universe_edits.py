"""Edits of a store's universe file: all of an edit is written, or nothing.

Not here: the edits of a text (``domain.universe.editing``), moves of bars
(``store.maintenance.rename``, ``store.maintenance.restore``).
"""

import codecs
import difflib
from collections.abc import Callable, Collection, Iterable, Mapping

from ktrdr_pipelines.app.workspace import Workspace
from ktrdr_pipelines.domain.universe.editing import add_symbol, set_fields
from ktrdr_pipelines.domain.universe.fields import READERS
from ktrdr_pipelines.domain.universe.universe import Universe, parse_universe
from ktrdr_pipelines.errors import ForeignIdentityError, UsageError
from ktrdr_pipelines.gaps.universe_diff import ChangeKind, universe_changes
from ktrdr_pipelines.store.files import disk_errors, locked, write_atomically
from ktrdr_pipelines.store.universe_file import load_universe


def symbols_in(text: str) -> list[str]:
    """Return symbols that were given as one text, with commas between them.

    Raises:
        UsageError: there is none, or one twice.
    """
    symbols = [one.strip() for one in text.split(",") if one.strip()]
    twice = sorted({one for one in symbols if symbols.count(one) > 1})
    if not symbols or twice:
        raise UsageError(
            f"symbols {text!r}",
            reason=f"{', '.join(twice)} given twice" if twice else "there is none",
            hint="Write symbols with commas between them, such as AAPL,MSFT",
        )
    return symbols


def fields_of(arguments: Iterable[str]) -> dict[str, str]:
    """Return ``--field value`` and ``--field=value`` as fields of an entry.

    Raises:
        UsageError: a field is unknown, has no value, or is given twice.
    """
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


def fields_in(assignments: Iterable[str]) -> dict[str, str]:
    """Return ``key=value`` texts as fields of an entry; an empty value removes a field.

    Raises:
        UsageError: a text is no assignment, or names an unknown field, or one twice.
    """
    fields: dict[str, str] = {}
    for text in assignments:
        key, equals, value = text.partition("=")
        if not equals:
            raise UsageError(
                text, reason="not of the form key=value", hint=f"Write {text}=VALUE, or {text}="
            )
        name = key.strip().replace("-", "_")
        if name not in READERS:
            near = difflib.get_close_matches(name, READERS, n=1)
            hint = f"Did you mean {near[0]}? " if near else ""
            raise UsageError(
                key, reason="not a field of a symbol", hint=f"{hint}Fields are {', '.join(READERS)}"
            )
        if name in fields:
            raise UsageError(key, reason="given twice", hint="Give it once")
        fields[name] = value.strip()
    return fields


def add_symbols(
    workspace: Workspace, symbols: Collection[str], fields: Mapping[str, str]
) -> Universe:
    """Add symbols with the same fields to the universe file, and return the new universe.

    Raises:
        UniverseError: the universe is malformed, has one of the symbols, or would be malformed.
        DiskError: the file cannot be written.
    """

    def edit(text: str, name: str) -> str:
        for symbol in symbols:
            text = add_symbol(text, name, symbol, fields)
        return text

    return _edited(workspace, edit)


def change_symbols(
    workspace: Workspace, symbols: Collection[str], fields: Mapping[str, str]
) -> Universe:
    """Set or remove fields of symbols in the universe file, and return the new universe.

    Raises:
        UniverseError: as ``add_symbols``, or there is no such symbol.
        ForeignIdentityError: a symbol has bars on disk that would be another instrument's.
        DiskError: the file cannot be written.
    """

    def edit(text: str, name: str) -> str:
        before = parse_universe(text, name)
        for symbol in symbols:
            text = set_fields(text, name, symbol, fields)
        for change in universe_changes(workspace.store, parse_universe(text, name), before):
            if change.kind is ChangeKind.REFUSED and change.symbol in symbols:
                raise ForeignIdentityError(
                    f"cannot change {change.symbol}", reason=change.text, hint=change.hint
                )
        return text

    return _edited(workspace, edit)


def _edited(workspace: Workspace, edit: Callable[[str, str], str]) -> Universe:
    """Edit the universe file, whose byte order mark is kept, and return the new universe."""
    layout = workspace.layout
    path = layout.universe
    with locked(layout.lock("universe"), f"the universe {path}"):
        load_universe(path)
        with disk_errors(path):
            before = path.read_bytes()
        mark = codecs.BOM_UTF8 if before.startswith(codecs.BOM_UTF8) else b""
        text = edit(before.decode("utf-8-sig"), str(path))
        write_atomically(
            path, lambda file: file.write(mark + text.encode()), before_renaming=layout.require_same
        )
    return parse_universe(text, str(path))
