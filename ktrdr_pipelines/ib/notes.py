"""What a gateway says about its own connections, as far as it still holds.

Not here: what becomes of open requests (``ib.inbox``).
"""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType

from ktrdr_pipelines.ib.codes import ErrorFrame
from ktrdr_pipelines.ib.questions import Question, Topic
from ktrdr_pipelines.limits import CodeClass

_LINK_LOST, _SERVER_LOST = 1100, 2110
_LINK, _SERVER = (_LINK_LOST, ""), (_SERVER_LOST, "")
_MENDS = {2104: 2103, 2106: 2105, 2107: 2105, 2108: 2103, 2158: 2157}
"""Which trouble with a data farm is over when a farm is reported well."""

_KINDS = {2103: "market data", 2105: "historical data", 2157: "contracts"}
_IDLE = frozenset({2107, 2108})
_CONNECTED = frozenset({2104, 2106, 2158})
_NEEDED = MappingProxyType({Topic.BARS: 2105, Topic.HEAD: 2105, Topic.CONTRACT: 2157})
"""Whose outage stands in the way of which question."""

_FARM = re.compile(r"(?::|upon demand\.)\s*([\w.]+)")


class FarmState(StrEnum):
    """What the gateway last said of a data farm; an idle one is connected to when needed."""

    OK = "ok"
    IDLE = "idle"
    BROKEN = "broken"


@dataclass(frozen=True, slots=True)
class Farm:
    """One of IB's data farms as the gateway sees it."""

    kind: str
    name: str
    state: FarmState

    def __str__(self) -> str:
        return f"{self.kind} {self.name or '(no name)'} {self.state}"


Key = tuple[int, str]
"""A trouble: its code, and the farm that it is about."""


@dataclass(frozen=True, slots=True)
class _Trouble:
    """What the gateway said, and the last question that was asked before it."""

    text: str
    after: int


class GatewayNotes:
    """Keeps the troubles that the gateway has told of and not yet called off.

    Nobody tells which farm serves which instrument. A question that is asked while a farm is
    broken, and answered all the same, shows that its route does not need that farm; until then
    any broken farm of the kind may be the one. Where the gateway has lost IB's server (2110), which
    it may tell beside a lost link or alone, a farm that is well or an answer shows that it has it
    again: nobody says that a message of its own ends that.
    """

    def __init__(self) -> None:
        self._troubles: dict[Key, _Trouble] = {}
        self._spared: set[tuple[Key, str]] = set()
        self._farms: dict[Key, Farm] = {}

    @property
    def lost_link(self) -> str:
        """What the gateway said when it lost its own connection, or nothing if it has one."""
        return self._troubles[_LINK].text if _LINK in self._troubles else ""

    @property
    def troubles(self) -> tuple[str, ...]:
        """Everything that is wrong now, in the gateway's words."""
        return tuple(trouble.text for trouble in self._troubles.values())

    @property
    def farms(self) -> tuple[Farm, ...]:
        """What is known of each data farm."""
        return tuple(self._farms.values())

    def obstacle(self, topic: Topic, route: str) -> str:
        """Say what stands in the way of a question, in the gateway's words, or nothing."""
        blocking = (
            trouble.text for key, trouble in self._troubles.items() if self._hits(key, topic, route)
        )
        return next(blocking, "")

    def cost(self, question: Question, over: Iterable[Key]) -> bool:
        """Say whether troubles that are over may have cost a question its answer."""
        return any(self._hits(key, question.topic, question.route) for key in over)

    def answered(self, question: Question) -> None:
        """Take in that a question was answered; one asked before a trouble shows nothing of it."""
        self._spared |= {
            (key, question.route)
            for key, trouble in self._troubles.items()
            if question.number > trouble.after and _shows(question.topic, key)
        }

    def take(self, frame: ErrorFrame, *, after: int = 0) -> tuple[Key, ...]:
        """Remember a trouble, or forget those that are over; give what is over.

        Args:
            frame: what the gateway says.
            after: the number of the last question that was asked before.
        """
        farm = _farm(frame)
        if frame.means is CodeClass.RESUME:
            return (_LINK, *self._resume(frame))
        if frame.means is CodeClass.PAUSE:
            self._break((frame.code, farm), _Trouble(str(frame), after))
        elif frame.code in _MENDS:
            code = _MENDS[frame.code]
            self._see(code, farm, FarmState.IDLE if frame.code in _IDLE else FarmState.OK)
            return self._forget(lambda key: _is_mended(key, frame.code, farm))
        return ()

    def _hits(self, key: Key, topic: Topic, route: str) -> bool:
        if key == _LINK:
            return True
        return key[0] in {_NEEDED[topic], _SERVER_LOST} and (key, route) not in self._spared

    def _break(self, key: Key, trouble: _Trouble) -> None:
        self._troubles[key] = trouble
        self._spared = {one for one in self._spared if one[0] != key}
        self._see(*key, FarmState.BROKEN)

    def _resume(self, frame: ErrorFrame) -> tuple[Key, ...]:
        """Forget the lost link, and what was broken of the farms that the text calls connected."""
        connected = _connected_farms(frame.text)
        for key in [key for key in self._farms if key[1] in connected]:
            self._see(*key, FarmState.OK)
        return self._forget(lambda key: key in {_LINK, _SERVER} or key[1] in connected)

    def _see(self, code: int, farm: str, state: FarmState) -> None:
        if code in _KINDS:
            self._farms[code, farm] = Farm(_KINDS[code], farm, state)

    def _forget(self, is_over: Callable[[Key], bool]) -> tuple[Key, ...]:
        over = tuple(filter(is_over, self._troubles))
        for key in over:
            del self._troubles[key]
        return over


def _shows(topic: Topic, key: Key) -> bool:
    """Say whether an answer shows that a trouble does not hit its route.

    Contracts may come out of the gateway's own memory.
    """
    return key[0] == _NEEDED[topic] or (key == _SERVER and topic is not Topic.CONTRACT)


def _is_mended(key: Key, code: int, farm: str) -> bool:
    """Say whether good news of a farm end a trouble."""
    if key == _SERVER:
        return code in _CONNECTED
    return key[0] == _MENDS[code] and (not farm or key[1] in {farm, ""})


def _farm(frame: ErrorFrame) -> str:
    """Give the farm that a text names (``... is broken:ushmds``, ``... demand.ushmds``)."""
    found = None if frame.code in {_LINK_LOST, _SERVER_LOST} else _FARM.search(frame.text)
    return found[1] if found else ""


def _connected_farms(text: str) -> set[str]:
    """Give the farms of ``... All data farms are connected: usfarm; ushmds; secdefnj.``."""
    listed = text.partition("farms are connected:")[2].partition(". The following")[0]
    return {name.strip(" .") for name in listed.split(";")} - {""}
