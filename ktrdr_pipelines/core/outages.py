"""Outages: many failures, one cause, one alert when it begins and one when it is over.

Not here: where failures come from and who is told (``defs.alert_sensor``).
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime

GATEWAY, DISK = "gateway", "disk"
_CAUSES = {
    "GatewayUnreachableError": GATEWAY,
    "GatewayRestingError": GATEWAY,
    "GatewaySilentError": GATEWAY,
    "ClientIdInUseError": GATEWAY,
    "ConnectionLostError": GATEWAY,
    "OutageError": GATEWAY,
    "DiskError": DISK,
}


def outage_of(cause: str) -> str | None:
    """Name the outage that errors of a class share, or None where each is its own."""
    return _CAUSES.get(cause)


@dataclass(frozen=True, slots=True)
class Ended:
    """One piece of work that ended: what it was, and why it failed, if it did.

    ``work`` names what is repeated, such as ``bars 1m AAPL``; ``cause`` is the class of the error
    (empty: it died without one); ``asked`` says whether a gateway answered it.
    """

    work: str
    at: datetime
    failed: bool = False
    cause: str = ""
    text: str = ""
    asked: bool = False

    @property
    def outage(self) -> str:
        """Name the outage that a failure belongs to: a shared cause, or the work itself."""
        return outage_of(self.cause) or self.work


@dataclass(frozen=True, slots=True)
class Outage:
    """Something that fails: since when, why in the first failure's words, how often so far."""

    name: str
    since: datetime
    cause: str
    text: str
    failures: int = 1


@dataclass(frozen=True, slots=True)
class Turn:
    """What some ended work changed: the outages that stand now, what began, what is over."""

    standing: Mapping[str, Outage]
    begun: tuple[Outage, ...] = field(default=())
    over: tuple[Outage, ...] = field(default=())


def after(standing: Mapping[str, Outage], ended: Iterable[Ended]) -> Turn:
    """Take in work that ended, oldest first; what began and was over at once is in neither."""
    now = dict(standing)
    for one in ended:
        if one.failed:
            known = now.get(one.outage)
            now[one.outage] = (
                replace(known, failures=known.failures + 1)
                if known
                else Outage(one.outage, one.at, one.cause, one.text)
            )
            continue
        for name in _mended_by(one):
            now.pop(name, None)
    return Turn(
        now,
        begun=tuple(outage for name, outage in now.items() if name not in standing),
        over=tuple(outage for name, outage in standing.items() if name not in now),
    )


def _mended_by(one: Ended) -> set[str]:
    """Name the outages that a success ends: it asked the gateway, and it wrote."""
    return {one.work} | ({GATEWAY, DISK} if one.asked else set())
