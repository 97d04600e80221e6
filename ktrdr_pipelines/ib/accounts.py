"""The accounts that a gateway names as its own: whose gateway it is, and frames without them.

Not here: what an account number looks like (``core.account_numbers``), the names of logins
(``ib.logins``).
"""

import re
from collections.abc import Sequence

from ktrdr_pipelines.core.account_numbers import PLACEHOLDER, without_accounts, without_announced
from ktrdr_pipelines.core.instruments import Origin

SIMULATED_ACCOUNT = "SIM"
"""How the account of a simulated gateway begins."""

_PREFIX = 4
_ACCOUNTS, _ERROR, _CONTRACT = "15", "4", "10"
_VALUES = frozenset({"9", "17", "49", "52", "88", "106"})
"""Messages that hold numbers and times, no texts; 17 can be megabytes long."""


def origin_of(accounts: Sequence[str]) -> Origin:
    """Say whether the accounts are those of a simulated gateway."""
    simulated = any(name.startswith(SIMULATED_ACCOUNT) for name in accounts)
    return Origin.SIMULATED if simulated else Origin.IB


class AccountFilter:
    """Takes account numbers out of the frames of one connection, before anything else sees them.

    ``announced`` are the accounts that the gateway has named so far.
    """

    def __init__(self) -> None:
        self.announced: tuple[str, ...] = ()
        self._digits: tuple[bytes, ...] = ()

    def cleaned(self, frame: bytes) -> bytes:
        """Return a frame, its four bytes of length included, without account numbers.

        The kind of the frame, its request id and a code stay, whatever they look like.
        """
        kind, _, _ = frame[_PREFIX : _PREFIX + 8].partition(b"\0")
        name = kind.decode("latin-1")
        if name in _VALUES and not any(run in frame for run in self._digits):
            return frame
        # Latin-1 gives each byte a character and back: texts of any encoding stay as they are.
        content = frame[_PREFIX:].decode("latin-1")
        if name in _VALUES:
            return _framed(without_announced(content, self.announced))
        fields = content.split("\0")
        if name == _ACCOUNTS:
            fields = self._announcement(fields)
        elif name == _ERROR:
            fields[4:] = [without_accounts(text, self.announced) for text in fields[4:]]
        else:
            fields[1:] = [self._field(name, text) for text in fields[1:]]
        return _framed("\0".join(fields))

    def _announcement(self, fields: list[str]) -> list[str]:
        """Learn the accounts of message 15, and give as many placeholders."""
        lists = [[one.strip() for one in text.split(",")] for text in fields[2:]]
        names = [name for names in lists for name in names if name]
        self.announced = tuple(dict.fromkeys((*self.announced, *names)))
        self._digits = tuple(_telling_part(name) for name in self.announced)
        hidden = [",".join(PLACEHOLDER if name else "" for name in names) for names in lists]
        return [*fields[:2], *hidden]

    def _field(self, kind: str, text: str) -> str:
        """Clean a field: of a contract only what has a blank is a text, else it is a value."""
        if kind == _CONTRACT and " " not in text:
            return without_announced(text, self.announced)
        return without_accounts(text, self.announced)


def _framed(content: str) -> bytes:
    data = content.encode("latin-1")
    return len(data).to_bytes(_PREFIX) + data


def _telling_part(account: str) -> bytes:
    """Return what is in every frame that holds an account in any letter case: its digits."""
    runs = re.findall(r"[0-9]+", account)
    return max(runs, key=len, default="").encode("ascii")
