"""Account numbers removed from incoming frames, and numbered names for logins.

``AccountFilter`` removes the account numbers of a gateway from all frames. ``Logins`` gives each
login a name that reveals nothing, ``login 1``, ``login 2``, the same in every process: the audit
shows by it which login a request went to. ``logins.key`` in the state folder holds a random key,
``logins.json`` the number of each login under the HMAC-SHA256 of its accounts by that key. So
neither the store nor the numbers contain anything from which an account could be computed, and the
state folder, which is private, contains no account. If either file is lost, numbering restarts.

Not here: recognizing account numbers in texts (``domain.account_numbers``).
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
"""Prefix of a simulated gateway's account names."""

KEY_BYTES: Final = 32
LOCK_WAIT_S: Final = 10.0
"""Seconds to wait for another process that numbers a login; that takes milliseconds."""

_PREFIX = 4
_ACCOUNTS, _ERROR, _CONTRACT = "15", "4", "10"
_VALUES = frozenset({"9", "17", "49", "52", "88", "106"})
"""Messages that hold numbers and times but no texts; 17 can be megabytes long."""

_log = logging.getLogger(__name__)


def origin_of(accounts: Sequence[str]) -> Origin:
    """Return whether a gateway is real or simulated, by its accounts."""
    simulated = any(name.startswith(SIMULATED_ACCOUNT) for name in accounts)
    return Origin.SIMULATED if simulated else Origin.IB


class AccountFilter:
    """Removes account numbers from the frames of one connection, before any other code sees them.

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
        # Latin-1 maps each byte to a character and back: texts of any encoding stay unchanged.
        content = frame[_PREFIX:].decode("latin-1")
        if name in _VALUES:
            return _framed(without_announced(content, self.announced))
        fields = content.split("\0")
        if name == _ACCOUNTS:
            fields = self._announcement(fields)
        elif name == _ERROR:
            fields[4:] = [without_accounts(text, self.announced) for text in fields[4:]]
        else:
            # A field of a contract without a blank is a value, not a text.
            fields[1:] = [
                without_announced(text, self.announced)
                if name == _CONTRACT and " " not in text
                else without_accounts(text, self.announced)
                for text in fields[1:]
            ]
        return _framed("\0".join(fields))

    def _announcement(self, fields: list[str]) -> list[str]:
        """Record the accounts of message 15, and return it with placeholders in their place."""
        lists = [[one.strip() for one in text.split(",")] for text in fields[2:]]
        names = [name for names in lists for name in names if name]
        self.announced = tuple(dict.fromkeys((*self.announced, *names)))
        # Every frame that holds an account, in any letter case, holds its longest run of digits.
        runs = (re.findall(r"[0-9]+", name) for name in self.announced)
        self._digits = tuple(max(found, key=len, default="").encode("ascii") for found in runs)
        hidden = [",".join(PLACEHOLDER if name else "" for name in names) for names in lists]
        return [*fields[:2], *hidden]


def _framed(content: str) -> bytes:
    data = content.encode("latin-1")
    return len(data).to_bytes(_PREFIX) + data


class Logins:
    """The logins that a user's gateways have had, by number.

    Args:
        folder: the state folder; created when first needed.
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
            raise _refused(self._folder, f"the folder was locked for {LOCK_WAIT_S:g} s") from error
        except OSError as error:
            raise _refused(self._folder, error.strerror or str(error)) from error

    def _numbered(self, accounts: Sequence[str]) -> int:
        """Assign the next number to the login, unless another process has done so meanwhile."""
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
        """Return the key; empty if there is no usable one."""
        try:
            key = bytes.fromhex(self._key_file.read_text(encoding="ascii"))
        except FileNotFoundError:
            return b""
        except ValueError:
            key = b""
        if len(key) != KEY_BYTES:
            _log.warning("%s holds no valid key; logins are renumbered", self._key_file)
            return b""
        return key

    def _numbers(self) -> dict[str, int]:
        try:
            known = json.loads(self._numbers_file.read_text(encoding="ascii"))
            return {str(mark): int(number) for mark, number in known.items()}
        except FileNotFoundError:
            return {}
        except (ValueError, TypeError, AttributeError):
            _log.warning("%s cannot be read; logins are renumbered", self._numbers_file)
            return {}


def _mark(key: bytes, accounts: Sequence[str]) -> str:
    """Return the key of a login in the file of numbers; empty if there is no HMAC key."""
    text = ",".join(sorted(accounts))
    return hmac.new(key, text.encode(), hashlib.sha256).hexdigest() if key else ""


def _refused(folder: Path, reason: str) -> DiskError:
    return DiskError(
        f"read the names of logins in {folder}",
        reason=reason,
        hint="Set KTRDR_STATE to a writable folder on a local disk.",
    )
