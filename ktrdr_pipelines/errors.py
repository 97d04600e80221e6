"""Every error of the project, in one tree.

KtrdrError
├── UsageError            a command, setting or file of the user is wrong (exit 2)
│   ├── SettingsError         a setting is unknown or has a bad value
│   │   ├── SettingFixedError     the environment fixes a setting that was to be changed
│   │   └── SettingValueError     a value that was to be set is not allowed
│   ├── UniverseError         the universe file is malformed
│   │   └── SeveralEntriesError   in several places
│   ├── UnknownSymbolError    a symbol is not in the universe
│   ├── NoStoreError          a data folder is not a store
│   └── UnknownOperationError there is no operation of this id
├── StoreError            the store on disk is damaged, foreign or not usable
│   ├── ForeignIdentityError  a file holds another instrument or origin
│   ├── CorruptFileError      a file cannot be read as what it should be
│   ├── StoreReplacedError    another store, or none, is where one was opened
│   ├── NoCatalogError        there is no catalog of this version; it can be rebuilt
│   └── DiskError             the system refused to read or write
│       └── OddPathError          a path is not the file or folder that it should be
├── GatewayError          the gateway could not, or would not, respond
│   ├── GatewayUnreachableError   no TCP connection, or one that closes at once
│   │   └── GatewayRestingError       circuit breaker open after repeated failures
│   ├── GatewayTimeoutError       connected, and no response before the deadline
│   ├── ClientIdInUseError        326, on every id that was tried
│   ├── ConnectionLostError       the connection ended while a request was open
│   ├── OutageError               the gateway has lost its own connection to IB
│   ├── PacingError               the gateway reports too many requests
│   ├── EntitlementError          not permitted or not subscribed
│   ├── RequestExpiredError       not sent before it would have meant something else
│   ├── RequestRejectedError      the gateway refuses this very request
│   │   ├── RequestTooLongError       because its duration is too long
│   │   └── BarSizeRefusedError       because it has another string for the bar size
│   ├── ContractUnknownError      no such instrument
│   ├── ContractAmbiguousError    several instruments match
│   ├── ContractUnclearError      no instrument, or several: the text does not tell which
│   └── BadAnswerError            a response that does not fit its request
│       └── UnknownZoneError          its times are in an unknown time zone
├── StoppingError         the process is being stopped, and starts nothing any more
├── IncompleteError       work ended with something unexplained (exit 3)
└── SimulatorError        the simulated gateway could not start or serve

An error keeps its fields; its text reads ``what was attempted: reason. Hint: what to do.``
"""

from collections.abc import Sequence
from enum import IntEnum


class ExitCode(IntEnum):
    """The exit code of a command."""

    DONE = 0
    FAILED = 1
    USAGE = 2
    INCOMPLETE = 3


class KtrdrError(Exception):
    """The base class of all errors that the project raises on purpose.

    Args:
        what: what was attempted.
        reason: why it failed.
        hint: what to do about it.
    """

    exit_code: ExitCode = ExitCode.FAILED

    def __init__(self, what: str, *, reason: str = "", hint: str = "") -> None:
        super().__init__(what, reason, hint)
        self.what = what
        self.reason = reason
        self.hint = hint

    def __str__(self) -> str:
        text = self.what if not self.reason else f"{self.what}: {self.reason}"
        return text if not self.hint else f"{text}. Hint: {self.hint}"

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuilt, (type(self), dict(self.__dict__)))


def _rebuilt(kind: type[KtrdrError], fields: dict[str, object]) -> KtrdrError:
    """Return an unpickled error, whatever the signature of its class."""
    error = kind.__new__(kind)
    error.__dict__.update(fields)
    return error


class UsageError(KtrdrError):
    """A command, a setting or a file of the user is wrong."""

    exit_code = ExitCode.USAGE


class SettingsError(UsageError):
    """A setting is unknown or has a bad value."""


class SettingFixedError(SettingsError):
    """The environment fixes a setting that was to be changed; ``variable`` is its name there."""

    def __init__(self, what: str, *, variable: str = "", reason: str = "", hint: str = "") -> None:
        super().__init__(what, reason=reason, hint=hint)
        self.variable = variable


class SettingValueError(SettingsError):
    """A value that was to be set is not allowed; ``field`` is its name where it was given."""

    def __init__(self, what: str, *, field: str = "", reason: str = "", hint: str = "") -> None:
        super().__init__(what, reason=reason, hint=hint)
        self.field = field


class UniverseError(UsageError):
    """The universe file is malformed; the error names file, line and key."""


class SeveralEntriesError(UniverseError):
    """The universe file is malformed in several places; ``errors`` has one for each.

    The other fields are those of the first one; the text has all of them, one a line.
    """

    def __init__(
        self,
        what: str,
        *,
        reason: str = "",
        hint: str = "",
        errors: Sequence[UniverseError] = (),
    ) -> None:
        super().__init__(what, reason=reason, hint=hint)
        self.errors = tuple(errors)

    @classmethod
    def of(cls, errors: Sequence[UniverseError]) -> "SeveralEntriesError":
        """Return the error of several errors, of which there is at least one."""
        first = errors[0]
        return cls(first.what, reason=first.reason, hint=first.hint, errors=errors)

    def __str__(self) -> str:
        return "\n".join(map(str, self.errors)) or super().__str__()


class UnknownSymbolError(UsageError):
    """A symbol is not in the universe."""


class NoStoreError(UsageError):
    """A data folder is not a store, or not one that can be used here."""


class UnknownOperationError(UsageError):
    """There is no operation of this id, or it is no longer remembered."""


class StoreError(KtrdrError):
    """The store on disk is damaged, foreign or not usable."""


class ForeignIdentityError(StoreError):
    """A file holds another instrument or origin than the bars to be saved."""


class CorruptFileError(StoreError):
    """A file cannot be read as what it should be."""


class StoreReplacedError(StoreError):
    """The store was moved, deleted or replaced while a process used it."""


class DiskError(StoreError):
    """The operating system refused to read or write."""


class OddPathError(DiskError):
    """A path is not the file or the folder that it should be."""


class NoCatalogError(StoreError):
    """A store has no catalog of this version; it can be rebuilt from the store."""


class GatewayError(KtrdrError):
    """The gateway could not, or would not, respond.

    ``code`` is the gateway's own code, or None if it gave none; ``retry`` tells whether the same
    request may be worth another attempt later, ``retry_in_s`` how much later at least, in seconds;
    ``was_sent`` whether a request was sent to the gateway at all.
    """

    retry: bool = False
    retry_in_s: float = 0.0
    was_sent: bool = True

    def __init__(
        self, what: str, *, reason: str = "", hint: str = "", code: int | None = None
    ) -> None:
        super().__init__(what, reason=reason, hint=hint)
        self.code = code


class GatewayUnreachableError(GatewayError):
    """No TCP connection could be made, or it was closed at once."""

    retry = True


class GatewayRestingError(GatewayUnreachableError):
    """The circuit breaker is open: no request is sent for a while after repeated failures."""

    was_sent = False


class GatewayTimeoutError(GatewayError):
    """The gateway is connected and did not respond before the deadline."""

    retry = True


class ClientIdInUseError(GatewayError):
    """Every client id that was tried is in use."""

    retry = True


class ConnectionLostError(GatewayError):
    """The connection ended, or the gateway lost its own, while a request was open."""

    retry = True


class OutageError(GatewayError):
    """The gateway, or a data farm that is needed, has lost its connection; its socket is up."""

    retry = True


class PacingError(GatewayError):
    """The gateway reports too many requests."""

    retry = True


class EntitlementError(GatewayError):
    """Not permitted or not subscribed; only requests that need the same permission are affected.

    ``entitlement`` is the missing permission: listing exchange, kind of instrument, what to show.
    """

    entitlement: str = ""


class RequestExpiredError(GatewayError):
    """A request whose end is now could not be sent in time: later it means something else."""

    was_sent = False


class RequestRejectedError(GatewayError):
    """The gateway refuses this very request; the same request would be refused again."""


class RequestTooLongError(RequestRejectedError):
    """The gateway refuses a request because its duration is too long for its bar size."""


class BarSizeRefusedError(RequestRejectedError):
    """The gateway refuses the string for the bar size."""


class ContractUnknownError(GatewayError):
    """The gateway knows no such instrument."""


class ContractAmbiguousError(GatewayError):
    """Several instruments match the entry of the universe."""


class ContractUnclearError(GatewayError):
    """The gateway refuses a contract; its text does not tell whether none or several match."""


class BadAnswerError(GatewayError):
    """A response that does not fit its request."""

    retry = True


class UnknownZoneError(BadAnswerError):
    """Times are in a time zone of unknown name; the same request would return the same."""

    retry = False


class IncompleteError(KtrdrError):
    """Work ended and something is still unexplained; the error names it."""

    exit_code = ExitCode.INCOMPLETE


class StoppingError(KtrdrError):
    """This process is being stopped, and starts nothing any more."""


class SimulatorError(KtrdrError):
    """The simulated gateway could not start or serve."""
