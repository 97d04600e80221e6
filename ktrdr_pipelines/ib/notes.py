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
            self._troubles[self._key(frame.code, frame)] = str(frame)
        elif frame.code in _MENDS:
            self._troubles.pop(self._key(_MENDS[frame.code], frame), None)

    @staticmethod
    def _key(code: int, frame: ErrorFrame) -> tuple[int, str]:
        """Name a trouble by code and farm (``... connection is broken:ushmds``)."""
        farm = "" if frame.code == _LINK_LOST else frame.text.rpartition(":")[2].strip()
        return code, farm
