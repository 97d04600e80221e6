"""Edit the text of a universe: add, rename and remove entries, and leave everything else as it is.

Comments, blank lines and spacing are the user's and are preserved to the byte: edits cut and paste
at the positions of YAML's nodes, and each result is parsed again before it is returned.

Not here: what an entry means (``domain.universe.defaults``), writing the file (``store``).
"""

import json
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import Final

from ruamel.yaml.nodes import CollectionNode, MappingNode, Node, ScalarNode, SequenceNode

from ktrdr_pipelines.domain.instruments import Instrument, SecType
from ktrdr_pipelines.domain.universe.defaults import base_of
from ktrdr_pipelines.domain.universe.universe import Universe, parse_universe
from ktrdr_pipelines.domain.universe.yaml_nodes import Item, parsed
from ktrdr_pipelines.errors import UniverseError

_PLAIN: Final = re.compile(r"[A-Za-z0-9_./-]+( [A-Za-z0-9_./-]+)*")
_COLON: Final = re.compile(r"\s*:")
_Pair = tuple[ScalarNode, Node]


@dataclass(frozen=True, slots=True)
class _Text:
    """The text of a universe, and the node of its mapping under ``symbols:``."""

    text: str
    name: str
    symbols: MappingNode

    @classmethod
    def of(cls, text: str, name: str) -> "_Text":
        """Find the symbols; a malformed universe is refused as everywhere."""
        parse_universe(text, name)
        return cls.unchecked(text, name)

    @classmethod
    def unchecked(cls, text: str, name: str) -> "_Text":
        """Find the symbols of a text of which an entry may be malformed."""
        item = parsed(text, name).mapping()["symbols"]
        assert isinstance(item.node, MappingNode)  # noqa: S101  (parse_universe has seen it)
        return cls(text, name, item.node)

    @property
    def pairs(self) -> list[_Pair]:
        """Keys and values of the entries, in the order of the file."""
        return list(self.symbols.value)

    def line_of(self, symbol: str) -> int:
        """Return the index of an entry."""
        keys = [key.value for key, _ in self.pairs]
        if symbol not in keys:
            by_capitals = {key.upper(): key for key in keys}
            near = get_close_matches(symbol.upper(), by_capitals, n=3)
            meant = f"Did you mean {', '.join(by_capitals[one] for one in near)}? " if near else ""
            raise UniverseError(
                f"{self.name} has no entry {symbol}",
                reason=f"it names {len(keys)} symbols",
                hint=f"{meant}`ktrdr universe check` lists them",
            )
        return keys.index(symbol)

    def end_of(self, pair: _Pair) -> int:
        """Return where an entry really ends; the mark of a block, or of no value, is later."""
        key, node = pair
        if isinstance(node, ScalarNode) and not node.value and not node.style and not node.anchor:
            colon = _COLON.match(self.text, key.end_mark.index)
            return colon.end() if colon else int(key.end_mark.index)
        if isinstance(node, CollectionNode) and not node.flow_style and node.value:
            last = node.value[-1]
            return self.end_of(last if isinstance(last, tuple) else (key, last))
        return int(node.end_mark.index)

    def with_part(self, start: int, end: int, new: str) -> str:
        """Return the text with the characters from ``start`` to ``end`` replaced."""
        return self.text[:start] + new + self.text[end:]


def add_symbol(text: str, name: str, symbol: str, fields: Mapping[str, str]) -> str:
    """Return the text with an entry added after the last one.

    Args:
        text: the text of the universe.
        name: its file, for messages.
        symbol: the key.
        fields: the entry's values by field, as a user writes them; lists with commas.

    Raises:
        UniverseError: the universe is malformed, has the symbol, or would be malformed with it.
    """
    return add_entry(text, name, symbol, f"{{{_fields(fields)}}}")


def add_entry(text: str, name: str, symbol: str, fields: str) -> str:
    """Return the text with an entry added after the last one.

    Args:
        text: the text of the universe.
        name: its file, for messages.
        symbol: the key.
        fields: the value of the entry, as ``entry_text`` returns it.

    Raises: as ``add_symbol``.
    """
    old = _Text.of(text, name)
    taken = {key.value.upper(): key.value for key, _ in old.pairs}
    if symbol.upper() in taken:
        raise UniverseError(
            f"cannot add {symbol} to {name}",
            reason=f"it already has {taken[symbol.upper()]}",
            hint="Edit that entry in the file, or choose another symbol",
        )
    entry = f"{_scalar(symbol)}: {fields}"
    if old.symbols.flow_style:
        at = old.symbols.end_mark.index - 1
        comma = " " if text[:at].rstrip().endswith(",") else ", "
        new = old.with_part(at, at, f"{comma}{entry}")
    else:
        at = _line_end(text, old.end_of(old.pairs[-1]))
        before = "" if text[:at].endswith("\n") else "\n"
        indent = " " * old.pairs[0][0].start_mark.column
        new = old.with_part(at, at, f"{before}{indent}{entry}\n")
    return _checked(old, new, added=symbol)


def remove_symbol(text: str, name: str, symbol: str) -> str:
    """Return the text without an entry and the lines that belong to it alone.

    Raises:
        UniverseError: there is no such entry, it is the only one, or others derive from it.
    """
    old = _Text.of(text, name)
    line_of = old.line_of(symbol)
    if len(old.pairs) == 1:
        raise UniverseError(
            f"cannot remove {symbol} from {name}",
            reason="it is the only symbol, and a universe names at least one",
            hint="Add another one first",
        )
    start, end = _lines_of(old, line_of)
    return _checked(old, old.with_part(start, end, ""), removed=symbol)


def set_fields(text: str, name: str, symbol: str, fields: Mapping[str, str]) -> str:
    """Return the text with fields of one entry set, or removed where their value is empty.

    Entries that take their contract from this one (``AAPL.ETH`` of ``AAPL``) change with it.

    Raises:
        UniverseError: the universe is malformed, or would be; there is no such entry.
    """
    old = _Text.of(text, name)
    old.line_of(symbol)
    new = text
    for field, value in fields.items():
        new = _with_field(new, name, symbol, (field, value))
    return _checked(old, new, changed=symbol)


def _with_field(text: str, name: str, symbol: str, field_and_value: tuple[str, str]) -> str:
    """Return the text with one field of an entry set or removed; the result may be malformed."""
    field, value = field_and_value
    old = _Text.unchecked(text, name)
    pair = old.pairs[old.line_of(symbol)]
    node = pair[1]
    parts: list[_Pair] = list(node.value) if isinstance(node, MappingNode) else []
    names = [key.value for key, _ in parts]
    if field not in names:
        return old.with_part(*_with_fields(old, pair, {field: value})) if value else text
    index = names.index(field)
    key, held = parts[index]
    if held.start_mark.index < key.end_mark.index:
        raise UniverseError(
            f"cannot set {field} of {symbol} in {name}",
            reason="its value is an alias of one elsewhere in the file",
            hint="Edit that file by hand",
        )
    end = old.end_of(parts[index])
    if value:
        start = min(held.start_mark.index, end)
        if held.start_mark.line > key.end_mark.line and (
            colon := _COLON.match(text, key.end_mark.index)
        ):
            start = colon.end()  # a list in lines below its key
        space = "" if text[:start].endswith(" ") else " "
        return old.with_part(start, end, f"{space}{_written(field, value)}")
    if isinstance(node, MappingNode) and not node.flow_style:
        begin = text.rfind("\n", 0, key.start_mark.index) + 1
        return old.with_part(begin, _line_end(text, end), "")
    if index + 1 < len(parts):
        return old.with_part(key.start_mark.index, parts[index + 1][0].start_mark.index, "")
    return old.with_part(old.end_of(parts[index - 1]) if index else key.start_mark.index, end, "")


def rename_symbol(
    text: str,
    name: str,
    symbol: str,
    new_symbol: str,
    *,
    contract_id: int | None = None,
    ib_symbol: str = "",
) -> str:
    """Return the text with another key for an entry; the instrument is unchanged.

    Fields that were derived from the old key, and would not be from the new one, are written into
    the entry.

    Args:
        text: the text of the universe.
        name: its file, for messages.
        symbol: the key of the entry.
        new_symbol: its new key.
        contract_id: the contract of the symbol, if it is known. It is written in place of IB's
            symbol, which the new key may be from now on.
        ib_symbol: IB's symbol from now on; empty to derive it from the new key where a contract
            id is written, or to keep it.

    Raises:
        UniverseError: there is no such entry, the new key is taken or not a symbol, or others
            derive from the old one.
    """
    renamed = _rename_key(text, name, symbol, new_symbol)
    entry = _Text.of(text, name)
    node = entry.pairs[entry.line_of(symbol)][1]
    own = {key.value for key, _ in node.value} if isinstance(node, MappingNode) else set()
    made = parse_universe(renamed, name).instrument(new_symbol)
    fields: dict[str, str] = {}
    has_id = "con_id" in own
    if (has_id or contract_id is not None) and made.sec_type in _NAMED_BY_KEY:
        if not has_id:
            fields["con_id"] = str(contract_id)
        if "symbol" not in own:
            fields["symbol"] = ""
    if ib_symbol:
        fields["symbol"] = ib_symbol
    return set_fields(renamed, name, new_symbol, fields) if fields else renamed


_NAMED_BY_KEY: Final = frozenset({SecType.STK, SecType.IND})
"""Kinds whose key is IB's symbol, unless ``symbol`` says otherwise."""


def _rename_key(text: str, name: str, symbol: str, new_symbol: str) -> str:
    """Return the text with another key for an entry, whose fields are all as they were."""
    old = _Text.of(text, name)
    line_of = old.line_of(symbol)
    universe = parse_universe(text, name)
    try:
        # Write only the fields that would change with the key.
        key = old.pairs[line_of][0]
        bare = old.with_part(key.start_mark.index, key.end_mark.index, _scalar(new_symbol))
        becomes = described(parse_universe(bare, name), new_symbol)
        was = described(universe, symbol)
        fields = {field: value for field, value in was.items() if becomes.get(field) != value}
        return _renamed(old, line_of, new_symbol, fields)
    except UniverseError:
        # The entry is malformed under the new key alone: write all that it derived from the old.
        fields = {
            field: _value(field_text)
            for field, field_text in universe.describe(universe.instrument(symbol)).items()
            if field_text.endswith("(derived)")
            and _value(field_text) not in {"", "none"}
            and field != "calendar"
        }
        return _renamed(old, line_of, new_symbol, fields)


def _renamed(old: _Text, line_of: int, new_symbol: str, fields: Mapping[str, str]) -> str:
    """Return the text with another key for an entry, and more fields in it."""
    pair = old.pairs[line_of]
    key = pair[0]
    whole = old.with_part(*_with_fields(old, pair, fields))
    start, end = key.start_mark.index, key.end_mark.index
    new = whole[:start] + _scalar(new_symbol) + whole[end:]
    return _checked(old, new, renamed=(key.value, new_symbol))


def _value(field_text: str) -> str:
    return field_text.rpartition(" (")[0]


def _with_fields(old: _Text, pair: _Pair, fields: Mapping[str, str]) -> tuple[int, int, str]:
    """Return the edit that writes fields into the value of an entry."""
    value, end = pair[1], old.end_of(pair)
    start = min(value.start_mark.index, end)
    if not fields:
        return start, start, ""
    if not isinstance(value, MappingNode):
        space = "" if old.text[:start].endswith(" ") else " "
        return start, end, f"{space}{{{_fields(fields)}}}"
    if value.flow_style:
        comma = ", " if value.value else ""
        return start + 1, start + 1, f"{_fields(fields)}{comma}"
    indent = " " * value.start_mark.column
    lines = [f"{field}: {_written(field, text)}\n{indent}" for field, text in fields.items()]
    return start, start, "".join(lines)


def _checked(
    old: _Text,
    new: str,
    *,
    added: str = "",
    removed: str = "",
    changed: str = "",
    renamed: tuple[str, str] = ("", ""),
) -> str:
    """Return the new text if it means the old one with the one change, and nothing else.

    Raises:
        UniverseError: it does not.
    """
    try:
        parsed(new, old.name)
    except UniverseError as error:
        raise UniverseError(
            f"cannot edit {old.name}",
            reason="an entry in it is written with an anchor, an alias or a question mark",
            hint="Edit that file by hand",
        ) from error
    before = dict(parse_universe(old.text, old.name).instruments)
    after = dict(parse_universe(new, old.name).instruments)
    after.pop(added, None)
    before.pop(removed, None)
    if changed:
        for dependent in [one for one in before if base_of(one)[0] == changed.upper()]:
            before.pop(dependent), after.pop(dependent)
        before.pop(changed, None), after.pop(changed, None)
    if renamed[0]:
        was, became = before.pop(renamed[0]), after.pop(renamed[1])
        if replace(became, symbol=was.symbol) != was:
            raise _changed(old.name, renamed[1], was, became)
    for symbol in sorted(before.keys() | after.keys()):
        one, other = before.get(symbol), after.get(symbol)
        if one != other:
            raise _changed(old.name, symbol, one, other)
    return new


def _changed(
    name: str, symbol: str, before: Instrument | None, after: Instrument | None
) -> UniverseError:
    return UniverseError(
        f"this edit of {name} would change {symbol} too",
        reason=f"from {before!r} to {after!r}",
        hint=f"Write into the entry of {symbol} the fields that it takes from the other one, or "
        "edit the file by hand",
    )


def _lines_of(old: _Text, line_of: int) -> tuple[int, int]:
    """Return the first and the end index of the text that belongs to one entry alone."""
    pairs = old.pairs
    start = pairs[line_of][0].start_mark.index
    if old.symbols.flow_style:
        if line_of + 1 < len(pairs):
            return start, pairs[line_of + 1][0].start_mark.index
        return old.end_of(pairs[line_of - 1]), old.end_of(pairs[line_of])
    begin = old.text.rfind("\n", 0, start) + 1
    return begin, _line_end(old.text, old.end_of(pairs[line_of]))


def _line_end(text: str, index: int) -> int:
    """Return the index after the line that holds an index."""
    end = text.find("\n", index)
    return len(text) if end < 0 else end + 1


def _fields(fields: Mapping[str, str]) -> str:
    return ", ".join(f"{name}: {_written(name, value)}" for name, value in fields.items())


def _written(field: str, value: str) -> str:
    """Return a value as it is written in the file; lists are in brackets."""
    if field == "timeframes":
        parts = (part.strip() for part in value.strip("[] ").split(","))
        return f"[{', '.join(_scalar(part) for part in parts)}]"
    return _scalar(value)


def _scalar(value: str) -> str:
    return value if _PLAIN.fullmatch(value) else json.dumps(value)


def entry_text(text: str, name: str, symbol: str) -> str:
    """Return the fields of an entry as one line of YAML, such as ``{timeframes: [1d]}``.

    Raises:
        UniverseError: the universe is malformed, or there is no such entry.
    """
    old = _Text.of(text, name)
    node = old.pairs[old.line_of(symbol)][1]
    universe = parse_universe(text, name)
    fields = universe.describe(universe.instrument(symbol))
    # What it takes from another entry is not there any more when it is needed.
    taken = {
        field: _value(value) for field, value in fields.items() if value.rpartition(" (as ")[1]
    }
    taken = {field: value for field, value in taken.items() if value != "none"}
    own = _in_one_line(node)
    return f"{own[:-1]}{', ' if own != '{}' else ''}{_fields(taken)}}}" if taken else own


def alone(text: str, name: str, symbol: str, fields: str) -> str:
    """Return a universe with the defaults of a text and one entry.

    Args:
        text: the text.
        name: its file, for messages.
        symbol: the key of the entry.
        fields: its value, as ``entry_text`` returns it.
    """
    entry = f"  {_scalar(symbol)}: {fields}"
    return "\n".join([*_other_sections(text, name), "symbols:", entry]) + "\n"


def _other_sections(text: str, name: str) -> list[str]:
    sections = parsed(text, name).mapping()
    return [
        f"{section}: {_in_one_line(sections[section].node)}"
        for section in sections
        if section != "symbols"
    ]


def with_last_good(text: str, name: str, good: str, bad: Collection[str]) -> str:
    """Return a text whose malformed entries are as in an earlier text, or left out.

    Entries that only the earlier text has are kept: while an edit is malformed, a missing entry may
    be a part of the mistake.

    Comments are not kept: the result replaces the text in use, not the user's file.

    Args:
        text: the text with malformed entries.
        name: its file, for messages.
        good: an earlier text, or empty.
        bad: the keys of the malformed entries.
    """
    now, before = _symbols_of(text, name), _symbols_of(good, name) if good else {}
    kept = {
        key: _in_one_line((before if key in bad else now)[key].node)
        for key in now
        if key not in bad or key in before
    }
    kept |= {key: _in_one_line(before[key].node) for key in before if key not in now}
    entries = (f"  {_scalar(key)}: {value}" for key, value in kept.items())
    return "\n".join([*_other_sections(text, name), "symbols:", *entries]) + "\n"


def _symbols_of(text: str, name: str) -> dict[str, Item]:
    return dict(parsed(text, name).mapping()["symbols"].pairs())


def _in_one_line(node: Node) -> str:
    if isinstance(node, MappingNode):
        pairs = (f"{_in_one_line(key)}: {_in_one_line(value)}" for key, value in node.value)
        return f"{{{', '.join(pairs)}}}"
    if isinstance(node, SequenceNode):
        return f"[{', '.join(map(_in_one_line, node.value))}]"
    if Item("", (), node, 0).is_null:
        return "{}"
    # A quoted value stays quoted: unquoted it could be no value at all.
    assert isinstance(node, ScalarNode)  # noqa: S101  (there is no other kind)
    return json.dumps(node.value) if node.style else _scalar(str(node.value))


def described(universe: Universe, symbol: str) -> dict[str, str]:
    """Return each field of a symbol as it is written in the file."""
    texts = universe.describe(universe.instrument(symbol))
    return {field: _value(text) for field, text in texts.items()}
