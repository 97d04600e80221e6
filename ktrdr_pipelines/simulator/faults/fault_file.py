"""The fault file: YAML read into rules, with errors that name the line.

Not here: what the faults are (``simulator.faults.faults``).
"""

import difflib
from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from importlib.resources import files
from pathlib import Path
from typing import TypeVar

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from ktrdr_pipelines.errors import SimulatorError
from ktrdr_pipelines.simulator.faults.faults import (
    SETTINGS,
    Fault,
    FaultPlan,
    FaultRule,
    Occasion,
    occasions_of,
)

E = TypeVar("E", Fault, Occasion)

EXAMPLE = "faults.example.yaml"
_FORM = "It must hold `faults:` with a list; see ktrdr simulate --faults-example"
_RESTORED = ("1101", "1102")
_TIMES = ("from", "until")
_BARS = ("bars_from", "bars_until")
_SELECTORS = ("kind", "symbol", *_TIMES, "nth", "every", "times", "probability")
_TEXTS = {Fault.ERROR: "text"} | dict.fromkeys(
    (Fault.LINK_LOST, Fault.NIGHTLY_FARMS, Fault.FARM_UNNAMED), "farms"
)
"""The text that a fault takes, by its key: of an error, or the list of farms in 1102."""

_WHOLE = frozenset({"code", "repeats"})
_NAMELESS = frozenset({Occasion.CONNECT, Occasion.TIME})
_MOST = 1_000_000_000
_YEAR = 365 * 24 * 60


def read_faults(path: Path) -> FaultPlan:
    """Read a file of faults.

    Raises:
        SimulatorError: it cannot be read, or something in it is wrong; file, line and key are
            named.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        hint = "`ktrdr simulate --faults-example` prints a file of faults"
        raise SimulatorError(f"read faults of {path}", reason=reason, hint=hint) from error
    return parse_faults(text, str(path))


def example_text() -> str:
    """Return the example file, which names every fault and setting."""
    return files("ktrdr_pipelines.simulator").joinpath(EXAMPLE).read_text(encoding="utf-8")


def parse_faults(text: str, name: str) -> FaultPlan:
    """Read the text of a file of faults; errors as ``read_faults``."""
    top = _Value(name, "", _composed(text, name), 1).mapping()
    _refuse_unknown(top, ("seed", "faults"))
    seed = top["seed"].whole(at_least=0) if "seed" in top else 0
    if "faults" not in top:
        raise _bad(name, 1, reason="has no faults", hint=_FORM)
    return FaultPlan([_rule(value) for value in top["faults"].items()], seed)


def _composed(text: str, name: str) -> Node:
    reader = YAML(typ="safe", pure=True)
    reader.version = (1, 1)  # as the files of earlier versions were read
    reader.composer.warn_double_anchors = False
    try:
        node: Node | None = reader.compose(text)
    except YAMLError as error:
        mark = error.problem_mark if isinstance(error, MarkedYAMLError) else None
        line = mark.line + 1 if mark else 1
        problem = getattr(error, "problem", None) or str(error)
        raise _bad(name, line, reason=f"is not YAML: {problem}", hint=_FORM) from error
    if node is None:
        raise _bad(name, 1, reason="is empty", hint=_FORM)
    return node


def _rule(value: "_Value") -> FaultRule:
    keys = value.mapping()
    fault = _fault(value, keys)
    occasion = _occasion(fault, keys)
    if fault is Fault.LINK_LOST and "code" in keys and keys["code"].text() not in _RESTORED:
        raise keys["code"].error(f"is {keys['code'].text()}", "It must be 1101 or 1102")
    start, until = _period(keys, _TIMES)
    bars_start, bars_until = _period(keys, _BARS)
    return FaultRule(
        fault=fault,
        occasion=occasion,
        symbol=keys["symbol"].text() if "symbol" in keys else "",
        start=start,
        until=until,
        nth=frozenset(keys["nth"].wholes()) if "nth" in keys else frozenset(),
        every=keys["every"].whole(at_least=1) if "every" in keys else None,
        times=keys["times"].whole(at_least=1) if "times" in keys else None,
        probability=keys["probability"].share() if "probability" in keys else 1.0,
        settings={key: keys[key].setting() for key in SETTINGS.get(fault, {}) if key in keys},
        text=keys[text].text() if (text := _TEXTS.get(fault, "")) in keys else "",
        bars_start=bars_start,
        bars_until=bars_until,
    )


def _period(
    keys: dict[str, "_Value"], names: tuple[str, str]
) -> tuple[datetime | None, datetime | None]:
    """Return the two instants of a pair of keys, each None where it is missing."""
    start, until = (keys[key].moment() if key in keys else None for key in names)
    if start is not None and until is not None and until <= start:
        reason = f"is not later than `{names[0]}:`"
        raise keys[names[1]].error(reason, "Let it begin before it ends")
    return start, until


def _fault(value: "_Value", keys: dict[str, "_Value"]) -> Fault:
    """Return the fault that an entry names; it has no key that would be of no effect."""
    if "fault" not in keys:
        raise value.error("names no fault", f"`fault:` must be one of {', '.join(Fault)}")
    fault = keys["fault"].choice(Fault)
    selectors = _TIMES if fault is Fault.CLOCK_OFF else _SELECTORS
    texts = (_TEXTS[fault],) if fault in _TEXTS else ()
    bars = _BARS if fault is Fault.RESTATED else ()
    _refuse_unknown(keys, ("fault", *selectors, *SETTINGS.get(fault, {}), *texts, *bars))
    return fault


def _occasion(fault: Fault, keys: dict[str, "_Value"]) -> Occasion:
    possible = occasions_of(fault)
    usual = Occasion.HISTORY if Occasion.HISTORY in possible else next(iter(possible))
    occasion = keys["kind"].choice(Occasion) if "kind" in keys else usual
    if occasion not in possible:
        allowed = ", ".join(sorted(possible))
        raise keys["kind"].error(f"is {occasion}", f"{fault} can meet {allowed}")
    if occasion in _NAMELESS and "symbol" in keys:
        raise keys["symbol"].error(f"is of no effect with kind {occasion}", "Remove it")
    return occasion


@dataclass(frozen=True, slots=True)
class _Value:
    """One value of the file: its key, its node and its line."""

    name: str
    key: str
    node: Node
    line: int

    def error(self, reason: str, hint: str) -> SimulatorError:
        return _bad(self.name, self.line, self.key, reason=reason, hint=hint)

    def mapping(self) -> dict[str, "_Value"]:
        if not isinstance(self.node, MappingNode):
            raise self.error("is no mapping", "It must hold lines of `key: value`")
        found: dict[str, _Value] = {}
        for key, node in self.node.value:
            value = _Value(self.name, str(key.value), node, key.start_mark.line + 1)
            if value.key in found:
                raise value.error("is there twice", "Remove one")
            found[value.key] = value
        return found

    def items(self) -> list["_Value"]:
        if not isinstance(self.node, SequenceNode):
            raise self.error("is no list", "Each entry begins with `- `")
        nodes = self.node.value
        return [_Value(self.name, self.key, node, node.start_mark.line + 1) for node in nodes]

    def text(self) -> str:
        if not isinstance(self.node, ScalarNode) or not self.node.value:
            raise self.error("is no single value", "Write one value")
        return str(self.node.value)

    def choice(self, kind: type[E]) -> E:
        text = self.text()
        if text not in list(kind):
            near = difflib.get_close_matches(text, list(kind), n=1)
            hint = f"Did you mean {near[0]}? " if near else ""
            raise self.error(f"is {text!r}", f"{hint}Allowed are {', '.join(kind)}")
        return kind(text)

    def number(self, allowed: str) -> float:
        try:
            return float(self.text())
        except ValueError:
            raise self.error(f"is {self.text()!r}", f"It must be {allowed}") from None

    def setting(self) -> float:
        """Return a setting: above 0, a share at most 1, minutes also below."""
        if self.key == "share":
            return self.share()
        found = self.number("a number")
        if self.key in _WHOLE and not found.is_integer():
            raise self.error(f"is {self.text()!r}", "It must be a whole number")
        least, most = (-_YEAR, _YEAR) if self.key == "minutes" else (0, _MOST)
        if found == 0 or not least <= found <= most:
            allowed = f"from {least} to {most}, but not 0" if least else "above 0"
            raise self.error(f"is {self.text()!r}", f"It must be a number {allowed}")
        return found

    def share(self) -> float:
        found = self.number("a number above 0, at most 1")
        if not 0 < found <= 1:
            raise self.error(f"is {self.text()!r}", "It must be above 0 and at most 1")
        return found

    def whole(self, *, at_least: int) -> int:
        text = self.text()
        if not text.isdecimal() or int(text) < at_least:
            raise self.error(f"is {text!r}", f"It must be a whole number from {at_least}")
        return int(text)

    def wholes(self) -> list[int]:
        if isinstance(self.node, SequenceNode):
            return [value.whole(at_least=1) for value in self.items()]
        return [self.whole(at_least=1)]

    def moment(self) -> datetime:
        text = self.text()
        try:
            found = datetime.fromisoformat(text)
        except ValueError:
            found = None
        if found is None or found.tzinfo is None:
            raise self.error(f"is {text!r}", "It must be an instant such as 2024-01-10T15:00:00Z")
        return found


def _refuse_unknown(values: dict[str, _Value], known: Collection[str]) -> None:
    for key, value in values.items():
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"Did you mean {near[0]}? " if near else ""
            raise value.error("is not a known key", f"{hint}Known are {', '.join(known)}")


def _bad(name: str, line: int, key: str = "", *, reason: str, hint: str) -> SimulatorError:
    where = f", {key}" if key else ""
    return SimulatorError(f"{name}, line {line}{where}", reason=reason, hint=hint)
