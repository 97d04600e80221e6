"""Texts of the gateway in a record: what is known stays, what could name anybody goes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ktrdr_pipelines.ib.known_texts import WITHHELD, harmless
from ktrdr_pipelines.limits import IbLimitsRegistry

HMDS = "Historical Market Data Service error message:"
INVALID = "Error validating request.-'bM' : cause - "
QUERY = "Historical Market Data Service query message:"
LINK = "Connectivity between IBKR and Trader Workstation has been"
WHOLE = [
    (100, "Max rate of messages per second has been exceeded:max=50 rec=51 (2)"),
    (162, f"{HMDS}HMDS query returned no data: AAPL@SMART Trades"),
    (162, f"{HMDS}Historical data request pacing violation"),
    (162, f"{HMDS}API historical data query cancelled: 12"),
    (162, f"{HMDS}No market data permissions for ISLAND STK."),
    (162, f"{HMDS}Trading TWS session is connected from a different IP address"),
    (162, f"{HMDS}Time length exceed max."),
    (162, f"{HMDS}invalid step: 1 sec"),
    (162, f"{HMDS}No historical market data for EUR/CASH@FXSUBPIP Last 300"),
    (
        165,
        f"{QUERY}HMDS server disconnect occurred.  Attempting reconnection...",
    ),
    (165, f"{QUERY}HMDS server connection was successful."),
    (166, "HMDS Expired Contract Violation."),
    (200, "No security definition has been found for the request"),
    (200, "The contract description specified for AAPL is ambiguous."),
    (
        321,
        f"{INVALID}Historical data bar size setting is invalid. Legal ones are: 1 secs, 1 day, 1W",
    ),
    (321, f"{INVALID}End date not supported with adjusted last"),
    (322, "Error processing request.-'bM' : cause - Duplicate ticker ID"),
    (322, f"{INVALID.replace('validating', 'processing')}"),
    (326, "Unable to connect as the client id is already in use. Retry with a unique client id."),
    (354, "Requested market data is not subscribed."),
    (366, "No historical data query found for ticker id:12"),
    (386, "Duplicate ticker ID for API historical data query."),
    (502, "Couldn't connect to TWS."),
    (504, "Not connected"),
    (507, "Bad Message Length 4242"),
    (1100, f"{LINK} lost."),
    (1101, f"{LINK} restored - data lost."),
    (
        1102,
        f"{LINK} restored - data maintained. All data farms are connected: eufarmnj; ushmds.",
    ),
    (1300, "TWS socket port has been reset and this connection is being dropped"),
    (2103, "Market data farm connection is broken:usfarm.nj"),
    (2104, "Market data farm connection is OK:usfuture"),
    (2105, "HMDS data farm connection is broken:ushmds"),
    (2106, "HMDS data farm connection is OK:euhmds"),
    (2107, "HMDS data farm connection is inactive but should be available upon demand.ushmds"),
    (2108, "Market data farm connection is inactive but should be available upon demand.usopt"),
    (2110, "Connectivity between TWS and server is broken. It will be restored automatically."),
    (2157, "Sec-def data farm connection is broken:secdefil"),
    (2158, "Sec-def data farm connection is OK:secdefnj"),
    (
        2174,
        "Warning: You submitted request with date-time attributes without explicit time zone.",
    ),
    (2188, "Up-to-the-second historical data requires additional subscription for the API."),
    (10089, "Requested market data requires additional subscription for API."),
    (10141, "Paper trading disclaimer must first be accepted for API connection."),
    (10168, "Requested market data is not subscribed. Delayed market data is not enabled."),
    (10186, "Requested market data is not subscribed. Delayed market data is not enabled."),
    (10187, "Failed to request historical ticks:No market data permissions"),
    (10197, "No market data during competing live session"),
    (10090, "Part of requested market data is not subscribed."),
    (10167, "Requested market data is not subscribed. Displaying delayed market data."),
    (10314, "End Date/Time: The date, time, or time-zone entered is invalid."),
]
NAMES = [
    "jane",
    "jane doe",
    "jdoe42",
    "DU" + "1234567",
    "jane@example.org",
    "192.0.2.17",
    "/home/jane",
]


def test_every_code_of_the_registry_has_texts() -> None:
    """No code whose class is known loses all of its text."""
    known = {*IbLimitsRegistry.CODES.value, *IbLimitsRegistry.CODE_TEXTS.value}
    assert {code for code, _ in WHOLE} == known


@pytest.mark.parametrize(("code", "text"), WHOLE)
def test_a_known_text_stays_whole(code: int, text: str) -> None:
    """A record holds what the gateway says, word for word."""
    assert harmless(code, text) == text


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("code", "text"), WHOLE)
def test_a_name_never_passes(code: int, text: str, name: str) -> None:
    """Wherever somebody is named, before, behind or in the middle, it is withheld."""
    middle = len(text) // 2
    for personal in (
        f"{text}{name}",
        f"{text} {name}",
        f"{text}, user {name}",
        f"{name}: {text}",
        f"{text[:middle]} {name} {text[middle:]}",
    ):
        assert name not in harmless(code, personal)


@pytest.mark.parametrize(("code", "text"), WHOLE)
def test_what_is_left_has_the_class_of_the_whole(code: int, text: str) -> None:
    """A replayed record means what the gateway meant, even where an end is withheld."""
    left = harmless(code, f"{text} of jane@example.org")
    assert IbLimitsRegistry.class_of(code, left) is IbLimitsRegistry.class_of(code, text)


@given(st.integers(0, 20_000), st.text(max_size=60))
def test_any_other_text_is_withheld(code: int, text: str) -> None:
    """Of what nobody knows nothing stays."""
    if not any(code == known and text.startswith(start[:9]) for known, start in WHOLE):
        assert harmless(code, text) == WITHHELD
