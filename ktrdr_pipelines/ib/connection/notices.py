"""What a person should know of how a gateway answers: each thing is told once a connection.

Not here: what the gateway says of its own state (``ib.connection.gateway_status``), who prints it
(``load``, ``cli``).
"""

import logging
from collections.abc import Callable
from typing import Final

from ktrdr_pipelines.ib.protocol.error_codes import ErrorFrame, is_english

_log = logging.getLogger(__name__)
OnNotice = Callable[[str], None]
"""Takes in words what a person should know of a gateway."""

ZONE_HINT: Final = (
    "Set the time zone of the gateway, and of its machine, to a name such as America/New_York"
)
LANGUAGE_HINT: Final = "Set the language of the gateway to English in its login window"


def unheard(_text: str) -> None:
    """Drop it."""


class Notices:
    """The notices of one connection: those from before somebody listens are told then."""

    def __init__(self) -> None:
        self._tell: OnNotice = unheard
        self._texts: list[str] = []
        self._zones: set[str] = set()
        self.foreign_text = ""

    @property
    def zones(self) -> tuple[str, ...]:
        """Names of zones that the gateway wrote and that are not known, in order."""
        return tuple(sorted(self._zones))

    def listen(self, tell: OnNotice) -> None:
        """Tell everything, what was noticed before included, to a listener."""
        self._tell = tell
        for text in self._texts:
            tell(text)

    def unknown_zone(self, name: str, what: str) -> None:
        """Take in a zone name that is not known.

        Args:
            name: as the gateway wrote it; empty where it named none.
            what: what cannot be read without it, such as ``trading hours``.
        """
        if name in self._zones:
            return
        self._zones.add(name)
        named = f"the time zone {name!r}, which is not known" if name else "no time zone"
        self._add(f"the gateway names {named}: {what} cannot be read. {ZONE_HINT}")

    def see_text(self, frame: ErrorFrame) -> None:
        """Take in the text of an error or notice, to tell whether the gateway speaks English."""
        if self.foreign_text or is_english(frame):
            return
        self.foreign_text = str(frame)
        self._add(
            f"the gateway's language seems not to be English ({frame}): what it refuses and why "
            f"cannot always be told. {LANGUAGE_HINT}"
        )

    def _add(self, text: str) -> None:
        _log.warning("%s", text)
        self._texts.append(text)
        self._tell(text)
