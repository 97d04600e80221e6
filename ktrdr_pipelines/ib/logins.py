"""Names for logins that say nothing: ``login 1``, ``login 2``, the same in every process.

The audit tells by them which login a request went to. ``logins.key`` in the state folder holds a
random key, ``logins.json`` the number of each login under the HMAC-SHA256 of its accounts by that
key. So neither the store nor the numbers hold anything that an account could be computed from, and
the state folder, which is private, holds no account. Losing either file begins new numbers.

Not here: what an account number looks like (``core.account_numbers``).
"""

import hashlib
import hmac
import json
import logging
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from filelock import FileLock, Timeout

from ktrdr_pipelines.errors import DiskError
from ktrdr_pipelines.private_files import FILE_MODE, make_private_folder, write_privately

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


def _refused(folder: Path, came: str) -> DiskError:
    return DiskError(
        f"names of logins in {folder}",
        came=came,
        remedy="Set KTRDR_STATE to a folder on a local disk that can be written.",
    )
