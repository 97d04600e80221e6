"""Errors: their tree, exit codes, texts, and how they are pickled."""

import inspect
import pickle
import re

import pytest

from ktrdr_pipelines import errors
from ktrdr_pipelines.errors import ExitCode, GatewayError, KtrdrError

KINDS = [
    kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, KtrdrError)
]
EXITS = {
    "KtrdrError": 1,
    "UsageError": 2,
    "SettingsError": 2,
    "SettingFixedError": 2,
    "SettingValueError": 2,
    "StoppingError": 1,
    "UniverseError": 2,
    "SeveralEntriesError": 2,
    "UnknownSymbolError": 2,
    "NoStoreError": 2,
    "UnknownOperationError": 2,
    "StoreError": 1,
    "ForeignIdentityError": 1,
    "CorruptFileError": 1,
    "DiskError": 1,
    "NoCatalogError": 1,
    "OddPathError": 1,
    "StoreReplacedError": 1,
    "GatewayError": 1,
    "GatewayUnreachableError": 1,
    "GatewayRestingError": 1,
    "GatewayTimeoutError": 1,
    "ClientIdInUseError": 1,
    "ConnectionLostError": 1,
    "OutageError": 1,
    "PacingError": 1,
    "EntitlementError": 1,
    "RequestExpiredError": 1,
    "RequestRejectedError": 1,
    "RequestTooLongError": 1,
    "BarSizeRefusedError": 1,
    "ContractUnknownError": 1,
    "ContractAmbiguousError": 1,
    "ContractUnclearError": 1,
    "BadAnswerError": 1,
    "UnknownZoneError": 1,
    "IncompleteError": 3,
    "SimulatorError": 1,
}
RETRIED = {
    "GatewayUnreachableError",
    "GatewayTimeoutError",
    "ClientIdInUseError",
    "ConnectionLostError",
    "GatewayRestingError",
    "OutageError",
    "PacingError",
    "BadAnswerError",
}


class OddError(KtrdrError):
    """An error whose signature differs from that of its base."""

    def __init__(self, symbol: str, count: int) -> None:
        super().__init__(f"{symbol}: {count} bars")
        self.symbol = symbol
        self.count = count


def documented_tree() -> dict[str, str]:
    """Return the tree in the docstring of the module: the base of each name."""
    above: dict[str, str] = {}
    path: list[str] = []
    for line in (errors.__doc__ or "").splitlines():
        if found := re.match(r"([│ ├└─]*)(\w+Error)\b", line):
            depth = len(found[1]) // 4
            path = [*path[:depth], found[2]]
            above[found[2]] = path[depth - 1] if depth else "Exception"
    return above


def test_the_documented_tree_is_complete() -> None:
    """The docstring has every error and its base."""
    assert documented_tree() == {kind.__name__: kind.__base__.__name__ for kind in KINDS}


def test_there_are_four_exit_codes() -> None:
    """0 done, 1 failed, 2 bad usage, 3 incomplete."""
    assert [(code.name, int(code)) for code in ExitCode] == [
        ("DONE", 0),
        ("FAILED", 1),
        ("USAGE", 2),
        ("INCOMPLETE", 3),
    ]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_error_ends_a_command_with_its_exit_code(kind: type[KtrdrError]) -> None:
    """A user's mistake is 2, incomplete work is 3, every other error is 1."""
    assert int(kind("something").exit_code) == EXITS[kind.__name__]


@pytest.mark.parametrize("kind", [k for k in KINDS if issubclass(k, GatewayError)], ids=str)
def test_only_temporary_errors_are_retried(kind: type[GatewayError]) -> None:
    """The same request is sent again after these errors alone."""
    assert kind("a request").retry is (kind.__name__ in RETRIED)


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({}, "loading AAPL 1m"),
        ({"reason": "nothing"}, "loading AAPL 1m: nothing"),
        ({"hint": "Try later"}, "loading AAPL 1m. Hint: Try later"),
        ({"reason": "nothing", "hint": "Try later"}, "loading AAPL 1m: nothing. Hint: Try later"),
    ],
)
def test_the_text_has_the_attempt_the_reason_and_a_hint(fields: dict[str, str], text: str) -> None:
    """Missing parts are left out with their punctuation."""
    assert str(KtrdrError("loading AAPL 1m", **fields)) == text


def test_a_gateway_error_keeps_the_gateways_code() -> None:
    """Logs and the audit record it; without one it is None."""
    assert GatewayError("a request", code=162).code == 162
    assert GatewayError("a request").code is None


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_an_unpickled_error_is_equal(kind: type[KtrdrError]) -> None:
    """Type, fields and text are unchanged in another process."""
    error = kind("requesting the time", reason="no response", hint="Restart it")
    if isinstance(error, GatewayError):
        error.code = 504
    copied = pickle.loads(pickle.dumps(error))  # noqa: S301  (made a line above)
    assert type(copied) is kind
    assert vars(copied) == vars(error)
    assert str(copied) == str(error)


def test_an_error_with_another_signature_can_be_unpickled() -> None:
    """A subclass may have any signature."""
    copied = pickle.loads(pickle.dumps(OddError("AAPL", 3)))  # noqa: S301  (made here)
    assert (copied.symbol, copied.count) == ("AAPL", 3)
    assert str(copied) == "AAPL: 3 bars"
