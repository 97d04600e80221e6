"""Ranges of symbols, each with the globs that match exactly the symbols in it.

A query of one symbol must not list the files of all symbols. DuckDB finds the files of a glob
first and filters them by name afterwards, but it drops a part of a union whose filter contradicts
the query's before it looks for files. So a large source is a union over ranges of symbols, which
together cover every name that a symbol can have, those of symbols still to come included.

Not here: the SQL that is made of them (``store.catalog.sql``).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from math import isqrt
from typing import Final

_CHARACTERS: Final = "-.0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ_abcdefghijklmnopqrstuvwxyz"
"""All characters of symbols (``domain.universe.fields.KEY_PATTERN``), in the order of their codes,
in which DuckDB compares text."""

_FEWEST_FILES: Final = 200
"""Fewer files are listed as fast by one glob."""

_MOST_GLOBS: Final = 3
"""Globs of one range; each lists the folder of all symbols once."""


@dataclass(frozen=True, slots=True)
class NameRange:
    """The names from ``first`` to before ``end``; None for no upper bound.

    ``globs`` match these names, and no other name that a symbol can have.
    """

    first: str
    end: str | None
    globs: tuple[str, ...]
    files: int = 0


def name_ranges(files: Mapping[str, int]) -> list[NameRange]:
    """Return the ranges, in order, for symbols with these numbers of files; none if they are few.

    A range costs every query about as much as 25 files that it lists, so one of five times the root
    of all files would cost least; twice that serves ``bars``, which has the ranges of all
    timeframes and lists the files of one.
    """
    total = sum(files.values())
    if total < _FEWEST_FILES:
        return []
    most = 10 * isqrt(total)
    joined: list[NameRange] = []
    for part in _split("", None, {name: files[name] for name in sorted(files)}, most):
        last = joined[-1] if joined else None
        is_small = last is not None and (
            last.files + part.files <= most and len(last.globs) + len(part.globs) <= _MOST_GLOBS
        )
        # Each range has files: DuckDB knows no columns of a list without any.
        if last is not None and (is_small or not (last.files and part.files)):
            globs, held = (*last.globs, *part.globs), last.files + part.files
            joined[-1] = NameRange(last.first, part.end, globs, held)
        else:
            joined.append(part)
    return joined if len(joined) > 1 else []


def _split(
    prefix: str, end: str | None, files: Mapping[str, int], most: int
) -> Iterator[NameRange]:
    """Yield the ranges of all names with a prefix; ``files`` are of those that exist."""
    if prefix in files:
        yield NameRange(prefix, prefix + _CHARACTERS[0], (prefix,), files[prefix])
    elif prefix:
        yield NameRange(prefix, prefix + _CHARACTERS[0], (prefix,))
    after = {
        character: dict(names)
        for character, names in groupby(
            ((name, number) for name, number in files.items() if name != prefix),
            key=lambda item: item[0][len(prefix)],
        )
    }
    group: list[str] = []
    held = 0
    for at, character in enumerate(_CHARACTERS):
        names = after.get(character, {})
        number = sum(names.values())
        is_heavy = number > most and len(names) > 1
        if group and (is_heavy or held + number > most):
            yield _group(prefix, group, prefix + character, held)
            group, held = [], 0
        if is_heavy:
            following = _CHARACTERS[at + 1 : at + 2]
            yield from _split(
                prefix + character, prefix + following if following else end, names, most
            )
        else:
            group.append(character)
            held += number
    if group:
        yield _group(prefix, group, end, held)


def _group(prefix: str, characters: Sequence[str], end: str | None, files: int) -> NameRange:
    """Return the names with a prefix and one of some neighbouring characters after it."""
    return NameRange(prefix + characters[0], end, (f"{prefix}[{''.join(characters)}]*",), files)
