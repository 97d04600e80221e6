"""Remove account numbers from texts, so that nothing that is stored or shown names an account.

Not here: the texts of a connection, and the names of logins (``ib.connection.accounts``).

Source: the forms are those that users of IB's API published in logs (grade C): ``U`` and digits of
a live account, ``F`` of an advisor, ``I`` of a broker, a ``D`` before each of them for paper, where
another letter may precede the digits, and a letter at the end for all accounts of an advisor.
"""

import re
from collections.abc import Sequence
from functools import lru_cache

PLACEHOLDER = "(account)"
"""The text that replaces an account number."""

_FORM = re.compile(
    r"(?<![A-Z0-9])(?:[UFI]|D[UFI][A-Z]?)[0-9]{5,9}[A-Z]?(?![A-Z0-9])",
    re.IGNORECASE | re.ASCII,
)
_FEWEST_DIGITS = 5
"""Announced names with fewer digits are replaced as whole words only: others may contain them."""


def without_accounts(text: str, announced: Sequence[str] = ()) -> str:
    """Return a text, such as that of an error, without account numbers.

    Words of the form of an account number are replaced, everything that ``without_announced``
    replaces, and the digits of an announced account alone. Local symbols of futures (``ESZ23``,
    ``6EU4``), ISINs, contract ids and dates do not have the form.

    Args:
        text: a text from a gateway.
        announced: the accounts that the gateway announced as its own.
    """
    text = _FORM.sub(PLACEHOLDER, text)
    known = _known(tuple(announced), with_digits=True)
    return text if known is None else known.sub(PLACEHOLDER, text)


def without_announced(text: str, announced: Sequence[str]) -> str:
    """Return a value, such as a local symbol or a number, without the announced accounts.

    They are replaced in any letter case and, if they have five digits or more, as all of IB's have,
    inside longer words too. The form alone is no reason: a CINS code such as that of Danone has it
    too. Nor are digits alone: they may be a number.
    """
    known = _known(tuple(announced), with_digits=False)
    return text if known is None else known.sub(PLACEHOLDER, text)


@lru_cache(maxsize=64)
def _known(announced: tuple[str, ...], *, with_digits: bool) -> re.Pattern[str] | None:
    """Return the pattern that matches the announced accounts, the longest first."""
    names = sorted({name.strip() for name in announced} - {""}, key=len, reverse=True)
    if not with_digits:
        names = [name for name in names if not name.isdecimal()]
    parts = [
        rf"{re.escape(name)}(?!\d)"
        if _is_identifying(name)
        else rf"(?<![A-Z0-9]){re.escape(name)}(?![A-Z0-9])"  # whole words only
        for name in names
    ]
    if with_digits:
        runs = {run for name in names for run in re.findall(r"[0-9]+", name)}
        parts += [rf"(?<!\d){run}(?!\d)" for run in runs if _is_identifying(run)]
    return re.compile("|".join(parts), re.IGNORECASE | re.ASCII) if parts else None


def _is_identifying(name: str) -> bool:
    return len(re.findall(r"[0-9]", name)) >= _FEWEST_DIGITS
