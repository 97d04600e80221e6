"""What a gateway says about its own connections, as far as it still holds.

Not here: what becomes of open requests (``ib.gateway``).
"""

from ktrdr_pipelines.ib.codes import ErrorFrame
from ktrdr_pipelines.limits import CodeClass

_LINK_LOST = 1100
_MENDS = {2104: 2103, 2106: 2105, 2107: 2105, 2108: 2103, 2158: 2157}
"""Which trouble with a data farm is over when a farm is reported well."""


class GatewayNotes:
    """Keeps the troubles that the gateway has told of and not yet called off."""

    def __init__(self) -> None:
        self._troubles: dict[tuple[int, str], str] = {}

    @property
    def lost_link(self) -> str:
        """What the gateway said when it lost its own connection, or nothing if it has one."""
        return self._troubles.get((_LINK_LOST, ""), "")

    @property
    def troubles(self) -> tuple[str, ...]:
        """Everything that is wrong now, in the gateway's words."""
        return tuple(self._troubles.values())

    def take(self, frame: ErrorFrame) -> None:
        """Remember a trouble, or forget one that is over."""
        if frame.means is CodeClass.RESUME:
            self._troubles.pop((_LINK_LOST, ""), None)
        elif frame.means is CodeClass.PAUSE:
            self._troubles[frame.code, _farm(frame)] = str(frame)
        elif frame.code in _MENDS:
            self._forget(_MENDS[frame.code], _farm(frame))

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
