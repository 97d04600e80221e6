"""Read YAML as written: every value keeps its line, and no key becomes a number or a date.

Values are read one by one, with errors that name file, line and key.

Not here: which keys there are (``domain.universe.fields``) and what follows from them
(``domain.universe.defaults``), the file itself (``store.universe_file``).
"""

import difflib
import re
from collections.abc import Collection
from dataclasses import dataclass
from datetime import date
from enum import StrEnum
from typing import TypeVar

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode
from ruamel.yaml.reader import ReaderError
from ruamel.yaml.scanner import Scanner
from ruamel.yaml.tokens import ScalarToken

from ktrdr_pipelines.errors import UniverseError

E = TypeVar("E", bound=StrEnum)

_FLAGS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
_NULL = "tag:yaml.org,2002:null"


@dataclass(frozen=True, slots=True)
class Item:
    """One value of a file: the file's name, the keys that lead to it, its node and its line.

    Lines count from 1; the line of a value under a key is the key's.
    """

    name: str
    keys: tuple[str, ...]
    node: Node
    line: int

    @property
    def is_null(self) -> bool:
        """Whether the value is left out."""
        return self.node.tag == _NULL

    def error(self, reason: str, hint: str) -> UniverseError:
        """Return an error that names the position of this value."""
        return bad(self.name, self.line, *self.keys, reason=reason, hint=hint)

    def mapping(self) -> dict[str, "Item"]:
        """Return the items of a mapping by key as written; a value left out is an empty mapping."""
        items: dict[str, Item] = {}
        for key, item in self.pairs():
            if key in items:
                hint = f"Remove one; the other is in line {items[key].line}"
                raise item.error("is given twice", hint)
            items[key] = item
        return items

    def pairs(self) -> list[tuple[str, "Item"]]:
        """Return the keys and items of a mapping in its order, also keys that are given twice."""
        if self.is_null:
            return []
        if not isinstance(self.node, MappingNode):
            raise self.error(
                f"is {_kind(self.node)}", "It must be a mapping: lines of `key: value`"
            )
        found = []
        for key_node, node in self.node.value:
            line = _line(key_node)
            if not isinstance(key_node, ScalarNode):
                reason = f"holds {_kind(key_node)} as a key"
                raise bad(self.name, line, *self.keys, reason=reason, hint="A key must be one word")
            key = str(key_node.value)
            found.append((key, Item(self.name, (*self.keys, key), node, line)))
        return found

    def refuse_unknown(self, known: Collection[str]) -> None:
        """Raise an error for a key of a mapping that is not known."""
        for item in self.mapping().values():
            item.require_known(known)

    def require_known(self, known: Collection[str]) -> None:
        """Raise an error if the key of this value is not among the known ones."""
        key = self.keys[-1]
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"Did you mean {near[0]}? " if near else ""
            raise self.error("is not a known key", f"{hint}Known are {', '.join(known)}")

    def text(self) -> str:
        """Return a scalar value as written."""
        if not isinstance(self.node, ScalarNode) or self.is_null or not self.node.value:
            raise self.error(f"is {_kind(self.node)}", "It must be a single value")
        return str(self.node.value)

    def word(self, pattern: str, allowed: str) -> str:
        """Return a value that matches a pattern; ``allowed`` describes it in the error."""
        text = self.text()
        if not re.fullmatch(pattern, text):
            raise self.error(f"is {text!r}", f"It must be {allowed}")
        return text

    def choice(self, kind: type[E]) -> E:
        """Return a value that is one of the names of a kind."""
        text = self.text()
        if text not in list(kind):
            raise self.error(f"is {text!r}", f"Allowed are {', '.join(kind)}")
        return kind(text)

    def choices(self, kind: type[E]) -> tuple[E, ...]:
        """Return a list of names of a kind, each once, in the order written."""
        if not isinstance(self.node, SequenceNode) or not self.node.value:
            allowed = f"It must be a list in brackets of some of {', '.join(kind)}"
            raise self.error(f"is {_kind(self.node)}", allowed)
        parts = [Item(self.name, self.keys, node, _line(node)) for node in self.node.value]
        found = [part.choice(kind) for part in parts]
        for one in found:
            if found.count(one) > 1:
                raise self.error(f"names {one} twice", "Name each once")
        return tuple(found)

    def flag(self) -> bool:
        """Return a boolean value."""
        text = self.text()
        if text.lower() not in _FLAGS:
            raise self.error(f"is {text!r}", "It must be true or false")
        return _FLAGS[text.lower()]

    def day(self, first: date, last: date) -> date:
        """Return a date from ``first`` to ``last``, both included."""
        text = self.text()
        allowed = f"It must be a date such as 2020-01-31, from {first} to {last}"
        try:
            day = date.fromisoformat(text)
        except ValueError:
            raise self.error(f"is {text!r}", allowed) from None
        if day.isoformat() != text or not first <= day <= last:
            raise self.error(f"is {text!r}", allowed)
        return day


class _Scanner(Scanner):
    """A scanner for which ``{AAPL:, SPY:{}}`` has the keys AAPL and SPY, as YAML says.

    ruamel.yaml 0.19 reads a colon before a comma or a bracket as a part of the key.
    """

    def scan_plain(self) -> ScalarToken:
        """Return a plain scalar; in braces and brackets, without a colon at its end."""
        token: ScalarToken = super().scan_plain()
        if self.flow_level and token.value[1:].endswith(":"):
            token.value = token.value[:-1]
            for count in ("index", "pointer", "column"):
                setattr(self.reader, count, getattr(self.reader, count) - 1)
            token.end_mark = self.reader.get_mark()
        return token


def parsed(text: str, name: str) -> Item:
    """Return the outermost item of a YAML text.

    Raises:
        UniverseError: it is not YAML, or it is empty.
    """
    reader = YAML(typ="safe", pure=True)
    reader.version = (1, 1)  # as the files of earlier versions were read
    reader.Scanner = _Scanner
    reader.composer.warn_double_anchors = False
    try:
        node = reader.compose(text)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else 1
        context = f" ({error.context})" if error.context else ""
        hint = "Check indentation, colons, quotes and brackets here and in the line above"
        lines = text.splitlines()
        if line <= len(lines) and "\t" in lines[line - 1]:
            hint = "Replace the tab by spaces"
        reason = f"is not YAML: {error.problem}{context}"
        raise bad(name, line, reason=reason, hint=hint) from error
    except ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        reason = f"holds a character that YAML does not allow ({error.reason})"
        raise bad(name, line, reason=reason, hint="Remove it") from error
    except RecursionError:
        raise bad(name, 1, reason="is nested too deeply", hint="Use plain mappings") from None
    if node is None:
        raise bad(name, 1, reason="is empty", hint="It must hold `symbols:` with an entry a symbol")
    return Item(name, (), node, _line(node))


def bad(name: str, line: int, *keys: str, reason: str, hint: str) -> UniverseError:
    """Return an error about one position in a file."""
    shown = [key if key.isprintable() else repr(key) for key in keys]
    where = f", {' > '.join(shown)}" if keys else ""
    return UniverseError(f"{name}, line {line}{where}", reason=reason, hint=hint)


def _line(node: Node) -> int:
    return int(node.start_mark.line) + 1


def _kind(node: Node) -> str:
    if isinstance(node, SequenceNode):
        return "a list" if node.value else "an empty list"
    if isinstance(node, MappingNode):
        return "a mapping"
    return repr(node.value) if node.value else "empty"
