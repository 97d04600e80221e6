"""The error of each code of the gateway."""

from typing import Any

import pytest

from ktrdr_pipelines.errors import (
    BadAnswerError,
    ClientIdInUseError,
    ConnectionLostError,
    ContractAmbiguousError,
    ContractUnknownError,
    EntitlementError,
    GatewayUnreachableError,
    OutageError,
    PacingError,
    RequestRejectedError,
    RequestTooLongError,
)
from ktrdr_pipelines.ib.protocol.error_codes import (
    ErrorFrame,
    NoDataError,
    QueryDroppedError,
    error_for,
    error_frame,
)
from ktrdr_pipelines.limits import IbLimitsRegistry
from tests.ib.scripted_gateway import HMDS

REQUESTED = "AAPL 1m, 1 D to now"

CODES = [
    (100, "Max rate of messages per second has been exceeded:max=50 rec=51", PacingError),
    (162, f"{HMDS}HMDS query returned no data: AAPL@SMART Trades", NoDataError),
    (162, f"{HMDS}Historical data request pacing violation", PacingError),
    (162, f"{HMDS}API historical data query cancelled: 12", QueryDroppedError),
    (162, f"{HMDS}No market data permissions for ISLAND STK. Requested", EntitlementError),
    (162, f"{HMDS}Trading TWS session is connected from a different IP address", EntitlementError),
    (162, f"{HMDS}Time length exceed max.", RequestTooLongError),
    (162, f"{HMDS}invalid step: 1 sec", RequestTooLongError),
    (162, f"{HMDS}No historical market data for EUR/CASH@FXSUBPIP Last 300", RequestRejectedError),
    (162, f"{HMDS}something unknown", BadAnswerError),
    (
        165,
        "Historical Market Data Service query message:HMDS server disconnect occurred.",
        OutageError,
    ),
    (165, "Historical Market Data Service query message:HMDS connection was successful.", None),
    (166, "HMDS Expired Contract Violation.", RequestRejectedError),
    (200, "No security definition has been found for the request", ContractUnknownError),
    (200, "The contract description specified for AAPL is ambiguous.", ContractAmbiguousError),
    (321, "Error validating request.-'bM' : cause - Invalid duration", RequestRejectedError),
    (322, "Error processing request: Only 50 simultaneous API historical data", PacingError),
    (322, "Error processing request.-'b1' : cause - Duplicate ticker ID", RequestRejectedError),
    (326, "Unable to connect as the client id is already in use.", ClientIdInUseError),
    (354, "Requested market data is not subscribed.", EntitlementError),
    (366, "No historical data query found for ticker id:12", QueryDroppedError),
    (386, "Duplicate ticker ID for API historical data query.", RequestRejectedError),
    (502, "Couldn't connect to TWS.", GatewayUnreachableError),
    (504, "Not connected", ConnectionLostError),
    (507, "Bad message length", ConnectionLostError),
    (1100, "Connectivity between IBKR and Trader Workstation has been lost.", OutageError),
    (1101, "Connectivity restored - data lost.", None),
    (1102, "Connectivity restored - data maintained.", None),
    (
        1300,
        "TWS socket port has been reset and this connection is being dropped",
        ConnectionLostError,
    ),
    (2103, "Market data farm connection is broken:usfarm", OutageError),
    (2104, "Market data farm connection is OK:usfarm", None),
    (2105, "HMDS data farm connection is broken:ushmds", OutageError),
    (2106, "HMDS data farm connection is OK:ushmds", None),
    (2110, "Connectivity between Trader Workstation and server is broken.", OutageError),
    (2107, "HMDS data farm connection is inactive but should be available upon demand.", None),
    (2108, "Market data farm connection is inactive but should be available upon demand.", None),
    (2157, "Sec-def data farm connection is broken:secdefnj", OutageError),
    (2158, "Sec-def data farm connection is OK:secdefnj", None),
    (2174, "Warning: You submitted request with date-time attributes without time zone", None),
    (2188, "Up-to-the-second historical data requires additional subscription", None),
    (10090, "Part of requested market data is not subscribed.", None),
    (10167, "Requested market data is not subscribed. Displaying delayed market data.", None),
    (420, "Invalid Real-time Query:Historical data request pacing violation", PacingError),
    (10089, "Requested market data requires additional subscription for API.", EntitlementError),
    (10141, "Paper trading disclaimer must first be accepted for API connection", EntitlementError),
    (10168, "Requested market data is not subscribed. Delayed", EntitlementError),
    (10186, "Requested market data is not subscribed. Delayed", EntitlementError),
    (10187, "Failed to request historical ticks:No market data permissions", EntitlementError),
    (10197, "No market data during competing live session", EntitlementError),
    (
        10314,
        "End Date/Time: The date, time, or time-zone entered is invalid.",
        RequestRejectedError,
    ),
    (2199, "an unknown notice", None),
    (9999, "an unknown error", RequestRejectedError),
]


@pytest.mark.parametrize(("code", "text", "kind"), CODES)
def test_a_code_becomes_its_error(code: int, text: str, kind: Any) -> None:
    """Each documented code becomes an error of its class, or a notice that ends no request."""
    error = error_for(ErrorFrame(7, code, text), REQUESTED)
    if kind is None:
        assert error is None
        return
    assert type(error) is kind
    assert error.code == code
    assert str(error).startswith(f"{REQUESTED}: {code} ")


@pytest.mark.parametrize(
    ("code", "text", "hint"),
    [
        (354, "Requested market data is not subscribed.", "Level 1 market data subscription"),
        (10197, "No market data during competing live session", "Another session"),
        (10141, "Paper trading disclaimer must first be accepted", "Accept the paper trading"),
        (162, f"{HMDS}Trading TWS session is connected from a different IP address", "Another"),
        (200, "No security definition has been found", "sec_type"),
        (200, "No security definition has been found", "nightly reset"),
        (200, "The contract description is ambiguous", "primary_exchange"),
        (162, f"{HMDS}No historical market data for EUR/CASH@FXSUBPIP Last 300", "what_to_show"),
        (162, f"{HMDS}Time length exceed max.", "Less is requested at a time"),
        (166, "HMDS Expired Contract Violation.", "retire"),
        (326, "Unable to connect as the client id is already in use.", "IB_CLIENT_ID"),
    ],
)
def test_an_error_says_what_to_do(code: int, text: str, hint: str) -> None:
    """The hint fits the code."""
    error = error_for(ErrorFrame(7, code, text), REQUESTED)
    assert error is not None
    assert hint in error.hint


def test_the_table_covers_every_code_of_the_registry() -> None:
    """Every code of the registry is tested here."""
    tested = {code for code, _, _ in CODES}
    assert set(IbLimitsRegistry.CODES.value) | set(IbLimitsRegistry.CODE_TEXTS.value) <= tested


def test_an_error_frame_is_read_with_and_without_its_last_field() -> None:
    """The last field, about orders, is ignored."""
    expected = ErrorFrame(3, 162, "no data")
    assert error_frame(["4", "2", "3", "162", "no data", ""]) == expected
    assert error_frame(["4", "2", "3", "162", "no data"]) == expected


@pytest.mark.parametrize("fields", [["4", "2"], ["4", "2", "x", "1", ""], ["4", "2", "1", "", ""]])
def test_an_invalid_frame_is_a_value_error(fields: list[str]) -> None:
    """An unreadable frame is not guessed."""
    with pytest.raises(ValueError, match=r"."):
        error_frame(fields)
