"""What a gateway says about its own connections, as far as it still holds.

Not here: what becomes of open requests (``ib.inbox``).
"""

from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType

from ktrdr_pipelines.ib.codes import ErrorFrame
from ktrdr_pipelines.ib.questions import Topic
from ktrdr_pipelines.limits import CodeClass

_LINK_LOST = 1100
_LINK = (_LINK_LOST, "")
_MENDS = {2104: 2103, 2106: 2105, 2107: 2105, 2108: 2103, 2158: 2157}
"""Which trouble with a data farm is over when a farm is reported well."""

_KINDS = {2103: "market data", 2105: "historical data", 2157: "contracts"}
_IDLE = frozenset({2107, 2108})
_NEEDED = MappingProxyType({Topic.BARS: 2105, Topic.HEAD: 2105, Topic.CONTRACT: 2157})
"""Whose outage stands in the way of which question."""


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


class GatewayNotes:
    """Keeps the troubles that the gateway has told of and not yet called off."""

    def __init__(self) -> None:
        self._troubles: dict[tuple[int, str], str] = {}
        self._harmless: set[tuple[int, str]] = set()
        self._farms: dict[tuple[int, str], Farm] = {}

    @property
    def lost_link(self) -> str:
        """What the gateway said when it lost its own connection, or nothing if it has one."""
        return self._troubles.get(_LINK, "")

    @property
    def troubles(self) -> tuple[str, ...]:
        """Everything that is wrong now, in the gateway's words."""
        return tuple(self._troubles.values())

    @property
    def farms(self) -> tuple[Farm, ...]:
        """What is known of each data farm."""
        return tuple(self._farms.values())

    def obstacle(self, topic: Topic) -> str:
        """Say what stands in the way of a question, in the gateway's words, or nothing.

        A broken farm does so until a question is answered all the same: then it was another farm.
        """
        blocking = (
            text
            for key, text in self._troubles.items()
            if key == _LINK or (key[0] == _NEEDED[topic] and key not in self._harmless)
        )
        return next(blocking, "")

    def concerns(self, topic: Topic) -> bool:
        """Say whether any trouble now is of a kind that a question can suffer from."""
        return any(key == _LINK or key[0] == _NEEDED[topic] for key in self._troubles)

    def answered(self, topic: Topic) -> None:
        """Take in that a question was answered in spite of what is broken."""
        self._harmless |= {key for key in self._troubles if key[0] == _NEEDED[topic]}

    def take(self, frame: ErrorFrame) -> None:
        """Remember a trouble, or forget one that is over."""
        farm = _farm(frame)
        if frame.means is CodeClass.RESUME:
            self._troubles.pop(_LINK, None)
        elif frame.means is CodeClass.PAUSE:
            self._troubles[frame.code, farm] = str(frame)
            self._harmless.discard((frame.code, farm))
            self._see(frame.code, farm, FarmState.BROKEN)
        elif frame.code in _MENDS:
            self._forget(_MENDS[frame.code], farm)
            state = FarmState.IDLE if frame.code in _IDLE else FarmState.OK
            self._see(_MENDS[frame.code], farm, state)

    def _see(self, code: int, farm: str, state: FarmState) -> None:
        if code in _KINDS:
            self._farms[code, farm] = Farm(_KINDS[code], farm, state)

    def _forget(self, code: int, farm: str) -> None:
        over = (
            [(code, farm), (code, "")]
            if farm
            else [key for key in self._troubles if key[0] == code]
        )
        for key in over:
            self._troubles.pop(key, None)


def _farm(frame: ErrorFrame) -> str:
    """Give the farm that a text names (``... connection is broken:ushmds``), or nothing."""
    return "" if frame.code == _LINK_LOST else frame.text.partition(":")[2].strip()
