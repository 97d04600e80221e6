"""Every error of the project, in one tree.

KtrdrError
├── UsageError            what a person asked for makes no sense (exit 2)
│   ├── SettingsError         a setting is unknown or has a bad value
│   ├── UniverseError         the universe file is malformed
│   ├── UnknownSymbolError    a symbol is not in the universe
│   └── NoStoreError          a data folder is not a store
├── StoreError            something on disk is not as it must be
│   ├── ForeignIdentityError  a file holds another instrument, origin or epoch
│   ├── CorruptFileError      a file cannot be read as what it should be
│   ├── StoreReplacedError    another store, or none, is where one was opened
│   ├── NoCatalogError        there is no catalog of this version; it can be built anew
│   └── DiskError             the system refused to read or write
│       └── OddPathError          something else stands where a file or folder should be
├── GatewayError          the gateway could not, or would not, answer
│   ├── GatewayUnreachableError   no TCP connection, or one that closes at once
│   │   └── GatewayRestingError       it failed too often and is left alone for a while
│   ├── GatewayTimeoutError       connected, and no answer before the deadline
│   ├── ClientIdInUseError        326, on every id that was tried
│   ├── ConnectionLostError       the connection ended while a request was open
│   ├── OutageError               the gateway has lost its own connection to IB
│   ├── PacingError               the gateway says that it was asked too much
│   ├── EntitlementError          not permitted or not subscribed
│   ├── RequestExpiredError       its turn came when it meant something else already
│   ├── RequestRejectedError      the gateway refuses this very request
│   │   ├── RequestTooLongError       because it reaches over too much
│   │   └── BarSizeRefusedError       because it has another string for the size of the bars
│   ├── ContractUnknownError      no such instrument
│   ├── ContractAmbiguousError    several instruments fit
│   ├── ContractUnclearError      no instrument, or several: the text does not tell which
│   └── BadAnswerError            an answer that cannot be what was asked for
│       └── UnknownZoneError          its times are told in a zone that is not known
├── IncompleteError       work ended with something unexplained (exit 3)
└── SimulatorError        the simulated gateway could not start or serve

An error keeps its fields; its text reads ``what was attempted: reason. Hint: what to do.``
"""

from enum import IntEnum


class ExitCode(IntEnum):
    """What a command says to the shell when it ends."""

    DONE = 0
    FAILED = 1
    USAGE = 2
    INCOMPLETE = 3


class KtrdrError(Exception):
    """The root: everything the project raises on purpose.

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
    """Rebuild an error that crossed a process border, whatever its signature."""
    error = kind.__new__(kind)
    error.__dict__.update(fields)
    return error


class UsageError(KtrdrError):
    """What a person asked for makes no sense."""

    exit_code = ExitCode.USAGE


class SettingsError(UsageError):
    """A setting is unknown or has a bad value."""


class UniverseError(UsageError):
    """The universe file is malformed; the text names file, line and key."""


class UnknownSymbolError(UsageError):
    """A symbol is not in the universe."""


class NoStoreError(UsageError):
    """A data folder is not a store, or not one that may be used here."""


class StoreError(KtrdrError):
    """Something on disk is not as it must be."""


class ForeignIdentityError(StoreError):
    """A file holds another instrument, origin or epoch than what was to be saved."""


class CorruptFileError(StoreError):
    """A file cannot be read as what it should be."""


class StoreReplacedError(StoreError):
    """The store was moved, deleted or replaced while a process worked on it."""


class DiskError(StoreError):
    """The operating system refused to read or write."""


class OddPathError(DiskError):
    """Something else stands where a file or a folder should be."""


class NoCatalogError(StoreError):
    """A store has no catalog of this version; one can be built from what it holds."""


class GatewayError(KtrdrError):
    """The gateway could not, or would not, answer.

    ``code`` is the gateway's own code, or None where it gave none; ``retry`` says whether the
    same request may be worth another try later, ``retry_in_s`` how much later at least;
    ``was_sent`` whether the gateway was asked at all.
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
    """It failed again and again, so that nothing asks it for a while."""

    was_sent = False


class GatewayTimeoutError(GatewayError):
    """The gateway is connected and did not answer before the deadline."""

    retry = True


class ClientIdInUseError(GatewayError):
    """Every client id that was tried is in use."""

    retry = True


class ConnectionLostError(GatewayError):
    """The connection ended, or the gateway lost its own, while a request was open."""

    retry = True


class OutageError(GatewayError):
    """The gateway, or the data farm that is needed, has lost its connection; its socket is up."""

    retry = True


class PacingError(GatewayError):
    """The gateway says that it was asked too much."""

    retry = True


class EntitlementError(GatewayError):
    """Not permitted or not subscribed; it stops what it concerns and nothing else.

    ``entitlement`` says what permission is missing: listing exchange, kind, what is shown.
    """

    entitlement: str = ""


class RequestExpiredError(GatewayError):
    """A request whose end is now could not be sent in time: later it means something else."""

    was_sent = False


class RequestRejectedError(GatewayError):
    """The gateway refuses this very request; the same again would be refused again."""


class RequestTooLongError(RequestRejectedError):
    """The gateway refuses a request because its duration is too long for its bar size."""


class BarSizeRefusedError(RequestRejectedError):
    """The gateway refuses the string that stands for the size of the bars."""


class ContractUnknownError(GatewayError):
    """The gateway knows no such instrument."""


class ContractAmbiguousError(GatewayError):
    """Several instruments fit what the universe says."""


class ContractUnclearError(GatewayError):
    """The gateway refuses a contract in words that do not tell whether it knows none or several."""


class BadAnswerError(GatewayError):
    """An answer that cannot be what was asked for."""

    retry = True


class UnknownZoneError(BadAnswerError):
    """Times are told in a zone whose name is not known; the same request would bring the same."""

    retry = False


class IncompleteError(KtrdrError):
    """Work ended and something is still unexplained; the text names it."""

    exit_code = ExitCode.INCOMPLETE


class SimulatorError(KtrdrError):
    """The simulated gateway could not start or serve."""
