"""Accounts and logins: taken out of all that is kept, and told apart by numbers.

The accounts that a gateway names as its own: whose gateway it is, and frames without them.

Names for logins that say nothing: ``login 1``, ``login 2``, the same in every process.

The audit tells by them which login a request went to. ``logins.key`` in the state folder holds a
random key, ``logins.json`` the number of each login under the HMAC-SHA256 of its accounts by that
key. So neither the store nor the numbers hold anything that an account could be computed from, and
the state folder, which is private, holds no account. Losing either file begins new numbers.
"""

import hashlib
import hmac
import json
import logging
import re
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from filelock import FileLock, Timeout

from ktrdr_pipelines.domain.account_numbers import PLACEHOLDER, without_accounts, without_announced
from ktrdr_pipelines.domain.instruments import Origin
from ktrdr_pipelines.errors import DiskError
from ktrdr_pipelines.ib.private_files import FILE_MODE, make_private_folder, write_privately

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
        self._digits = tuple(_identifying_part(name) for name in self.announced)
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


def _identifying_part(account: str) -> bytes:
    """Return what is in every frame that holds an account in any letter case: its digits."""
    runs = re.findall(r"[0-9]+", account)
    return max(runs, key=len, default="").encode("ascii")


KEY_BYTES: Final = 32
LOCK_WAIT_S: Final = 10.0
"""Seconds to wait for another process that numbers a login; that takes milliseconds."""

_log = logging.getLogger(__name__)


class Logins:
    """The logins that a user's gateways had, by number.

    Args:
        folder: the state folder; made when first needed.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._key_file, self._numbers_file = folder / "logins.key", folder / "logins.json"

    def __repr__(self) -> str:
        return f"Logins({self._folder})"

    def name_of(self, accounts: Sequence[str]) -> str:
        """Return the name of the login that has these accounts, whatever their order.

        Raises:
            DiskError: the state folder cannot be used.
        """
        try:
            number = self._numbers().get(_mark(self._key(), accounts))
            return f"login {self._numbered(accounts) if number is None else number}"
        except Timeout as error:
            raise _refused(self._folder, f"it was locked for {LOCK_WAIT_S:g} s") from error
        except OSError as error:
            raise _refused(self._folder, error.strerror or str(error)) from error

    def _numbered(self, accounts: Sequence[str]) -> int:
        """Give the login the next number, unless another process has done so meanwhile."""
        make_private_folder(self._folder)
        with FileLock(self._folder / "logins.lock", timeout=LOCK_WAIT_S, mode=FILE_MODE):
            key, numbers = self._key(), self._numbers()
            if not key:
                key = secrets.token_bytes(KEY_BYTES)
                write_privately(self._key_file, f"{key.hex()}\n".encode())
            mark = _mark(key, accounts)
            if mark not in numbers:
                numbers[mark] = max(numbers.values(), default=0) + 1
                write_privately(self._numbers_file, f"{json.dumps(numbers, indent=1)}\n".encode())
            return numbers[mark]

    def _key(self) -> bytes:
        """Return the key, or nothing where there is none that can be used."""
        try:
            key = bytes.fromhex(self._key_file.read_text(encoding="ascii"))
        except FileNotFoundError:
            return b""
        except ValueError:
            key = b""
        if len(key) != KEY_BYTES:
            _log.warning("%s holds no key; logins are numbered anew", self._key_file)
            return b""
        return key

    def _numbers(self) -> dict[str, int]:
        try:
            known = json.loads(self._numbers_file.read_text(encoding="ascii"))
            return {str(mark): int(number) for mark, number in known.items()}
        except FileNotFoundError:
            return {}
        except (ValueError, TypeError, AttributeError):
            _log.warning("%s cannot be read; logins are numbered anew", self._numbers_file)
            return {}


def _mark(key: bytes, accounts: Sequence[str]) -> str:
    """Return what stands for a login in the file of numbers; nothing where there is no key."""
    text = ",".join(sorted(accounts))
    return hmac.new(key, text.encode(), hashlib.sha256).hexdigest() if key else ""


def _refused(folder: Path, reason: str) -> DiskError:
    return DiskError(
        f"names of logins in {folder}",
        reason=reason,
        hint="Set KTRDR_STATE to a folder on a local disk that can be written.",
    )
