"""Notices for the user about a gateway's responses, each reported once a connection.

Not here: what the gateway reports of its own state (``ib.connection.gateway_status``), printing
notices (``sync``, ``cli``).
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from ktrdr_pipelines.errors import BadAnswerError, UnknownZoneError
from ktrdr_pipelines.ib.protocol.error_codes import ErrorFrame, is_english
from ktrdr_pipelines.ib.protocol.times import UnknownZone

OnNotice = Callable[[str], None]
"""Takes a text about the gateway for the user."""

ZONE_HINT: Final = (
    "Set the time zone of the gateway, and of its machine, to a name such as America/New_York"
)
LANGUAGE_HINT: Final = "Set the language of the gateway to English in its login window"
_log = logging.getLogger(__name__)


def ignore_notice(_text: str) -> None:
    """Ignore a notice: the default of ``OnNotice`` parameters."""


class Notices:
    """The notices of one connection; earlier ones are kept until a listener is set."""

    def __init__(self) -> None:
        self._tell: OnNotice = ignore_notice
        self._texts: list[str] = []
        self._zones: set[str] = set()
        self.foreign_text = ""

    @property
    def zones(self) -> tuple[str, ...]:
        """The unknown zone names that the gateway has used, sorted."""
        return tuple(sorted(self._zones))

    def listen(self, tell: OnNotice) -> None:
        """Report all notices, earlier ones included, to a listener."""
        self._tell = tell
        for text in self._texts:
            tell(text)

    def unknown_zone(self, name: str, what: str) -> None:
        """Report an unknown zone name, once.

        Args:
            name: as the gateway wrote it; empty if it named no zone.
            what: what cannot be read without the zone, such as ``trading hours``.
        """
        if name in self._zones:
            return
        self._zones.add(name)
        problem = f"uses the unknown time zone {name!r}" if name else "names no time zone"
        self._add(f"the gateway {problem}: {what} cannot be read. {ZONE_HINT}")

    def renamed_contract(self, symbol: str, contract: str) -> None:
        """Report that the contract of a symbol is no longer named as in the universe."""
        self._add(
            f"{symbol}: the gateway now names its contract {contract}; the same contract is "
            f"loaded on. To follow the name, run: ktrdr universe rename {symbol} NEW"
        )

    @contextmanager
    def reading(self, what: str, subject: str = "") -> Iterator[None]:
        """Translate errors of reading a response into gateway errors; report an unknown zone.

        Args:
            what: the request.
            subject: what is stated in a time zone, for the notice about an unknown one.

        Raises:
            UnknownZoneError: the response states a time in an unknown zone.
            BadAnswerError: the response is invalid.
        """
        try:
            yield
        except UnknownZone as error:
            self.unknown_zone(error.name, subject)
            raise UnknownZoneError(what, reason=str(error), hint=ZONE_HINT) from error
        except (ValueError, IndexError, OverflowError) as error:
            raise BadAnswerError(
                what, reason=f"an invalid response: {error}", hint="The whole response is dropped."
            ) from error

    def see_text(self, frame: ErrorFrame) -> None:
        """Report, once, an error or notice that shows that the gateway does not speak English."""
        if self.foreign_text or is_english(frame):
            return
        self.foreign_text = str(frame)
        self._add(
            f"the gateway's language seems not to be English ({frame}): its refusals cannot "
            f"always be classified. {LANGUAGE_HINT}"
        )

    def _add(self, text: str) -> None:
        _log.warning("%s", text)
        self._texts.append(text)
        self._tell(text)
