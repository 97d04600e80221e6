"""Account numbers are removed from texts; symbols, ids and dates stay.

Numbers are composed here, so that no file of the project has what looks like an account.
"""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ktrdr_pipelines.domain.account_numbers import PLACEHOLDER, without_accounts, without_announced

OWN = "U" + "7654321"
DIGITS = "7654321"

CHANGED = [
    ("Error for {}", OWN),
    ("Error for {}.", "u" + DIGITS),
    ("Error validating request.-'bM' : cause - account {} is not allowed", "DU" + "1234567"),
    ("{}: not subscribed", "F" + "1234567"),
    ("({})", "DF" + "123456"),
    ("[{}]", "I" + "1234567"),
    ("'{}'", "DI" + "1234567"),
    ('{{"account":"{}","reason":"x"}}', "U" + "12345678"),
    ("acct={};", "U" + "123456789"),
    ("acct_{}_x", "U" + "12345"),
    ("all of {}", "F" + "1234567" + "A"),
    ("sub {}", "U" + "1234567" + "b"),
    ("paper {}", "DUE" + "123456"),
    ("{}/{}", "DU" + "123456"),
    ("Zugriff auf Konto {} verweigert", "U" + DIGITS),
    ("历史{}数据", "U" + DIGITS),
    ("\u00a0{}\u00a0", "U" + DIGITS),
]
"""Texts with a place for an account that no gateway has announced."""

KEPT = [
    "",
    "Historical Market Data Service error message:HMDS query returned no data: ESU24@CME Trades",
    "HMDS query returned no data: 6EU4@CME Trades",
    "GCZ3 ESZ23 MESH6 NQH25 ZN 03-24 FDAX 20240621 M FESX DEC 24 UBU4 I2409 IF2406",
    "US0378331005 US912797PA95 US88160R1014 FR0000120271 DE0007164600 IT0003128367 FI0009000681",
    "037833100 265598 750150186 conId 12087792",
    "20260105 20260105-09:30:00 2026-01-05 1767623400 20260320 14:30:00 Europe/Zurich",
    "AAPL  250117C00200000 SPX 250117P05000000 IBCID123456789",
    "AAPL EURUSD BTCUSD UBER F U DU DF I DI FX12345 UB10001 U1 F123 DU1234",
    "user fredu123456 and edemo and iuser1234567 and trader1u2345678",
    "321 Error validating request.-'bM' : cause - Historical data bar size setting is invalid",
    "Market data farm connection is OK:usfarm.nj eufarmnj ushmds secdefil cashfarm uscrypto",
    "API historical data query cancelled: 1234567",
    "No historical market data for EUR/CASH@FXSUBPIP Last 300",
    "1102 Connectivity between IBKR and Trader Workstation has been restored - data maintained.",
    "sha256 d2f0a1b3c4e5f60718293a4b5c6d7e8f",
    "0x7f1234567890 U+1F600 U-1234567x",
]
"""Texts that stay as they are where no gateway has announced anything."""


@pytest.mark.parametrize(("text", "account"), CHANGED)
def test_what_has_the_form_of_an_account_is_replaced(text: str, account: str) -> None:
    """Whatever is around it, in any letter case."""
    assert without_accounts(text.format(account, account)) == text.format(PLACEHOLDER, PLACEHOLDER)


@pytest.mark.parametrize("text", KEPT)
def test_what_is_no_account_number_stays(text: str) -> None:
    """Symbols, ISINs, contract ids, dates, farms and user names are unchanged."""
    assert without_accounts(text) == text


@pytest.mark.parametrize(
    ("announced", "text", "clean"),
    [
        (OWN, f"x{OWN}x", "x(account)x"),
        (OWN, f"X{OWN.lower()}_2", "X(account)_2"),
        (OWN, f"account {DIGITS}", "account (account)"),
        (OWN, f"U-{DIGITS}, U {DIGITS}", "U-(account), U (account)"),
        (OWN, f"{DIGITS}0 and 1{DIGITS}", f"{DIGITS}0 and 1{DIGITS}"),
        (f" {OWN} ", f"({OWN})", "((account))"),
        ("house", "The House account of a warehouse", "The (account) account of a warehouse"),
        ("DU1", "DU1 and EDU1 and DU12", "(account) and EDU1 and DU12"),
        ("", "nothing is announced", "nothing is announced"),
        ("a.c|d", "abc a.c|d", "abc (account)"),
    ],
)
def test_announced_accounts_are_replaced(announced: str, text: str, clean: str) -> None:
    """Whatever their form, also inside a word, and their digits alone."""
    assert without_accounts(text, [announced]) == clean


@pytest.mark.parametrize(
    ("value", "clean"),
    [
        (OWN, PLACEHOLDER),
        (f"a{OWN.lower()}b", "a(account)b"),
        (DIGITS, DIGITS),
        ("F" + "12033134", "F" + "12033134"),
        (f"{OWN}0", f"{OWN}0"),
    ],
)
def test_in_values_only_announced_accounts_are_replaced(value: str, clean: str) -> None:
    """A contract id of the same digits, or a CINS code of the form, is no account."""
    assert without_announced(value, [OWN]) == clean


def test_an_announced_number_leaves_numbers_of_values_alone() -> None:
    """A price that has the same digits is a price."""
    assert without_announced(DIGITS, [DIGITS]) == DIGITS
    assert without_accounts(f"for {DIGITS}", [DIGITS]) == "for (account)"


@given(
    before=st.text(max_size=20),
    after=st.text(max_size=20),
    account=st.from_regex(r"\A(U|DU|F|DF|I|DI)[0-9]{5,9}\Z"),
    others=st.lists(st.from_regex(r"\A[A-Z]{1,3}[0-9]{5,9}\Z"), max_size=3),
)
def test_no_text_holds_an_announced_account(
    before: str, after: str, account: str, others: list[str]
) -> None:
    """In no letter case; and a text without accounts is unchanged."""
    clean = without_accounts(f"{before} {account}. {after}", [account, *others])
    assert account.casefold() not in clean.casefold()
    assert without_accounts(clean, [account, *others]) == clean
