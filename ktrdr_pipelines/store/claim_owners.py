"""Claims of chunks: so that two runs never ask for the same.

Not here: the table itself (``store.ledger.claims``), the series' lock (``store.bars.bar_store``).

A claim has a time limit and an owner; an owner holds a file lock for its whole life, so that the
claims of a killed process can be told from those of a living one and dropped at once.
"""

import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

from filelock import FileLock, Timeout

from ktrdr_pipelines.domain.instruments import Series
from ktrdr_pipelines.domain.intervals import Interval
from ktrdr_pipelines.store.files import disk_errors, is_regular, make_folder
from ktrdr_pipelines.store.layout import StoreLayout
from ktrdr_pipelines.store.ledger.ledger import Ledger, series_key

CLAIM_S = 3600.0
"""How long a claim lasts unless it is given back: longer than a request ever waits for its turn,
pauses after violations and many others ahead of it included. It is for owners that hang; the claims
of those that died are dropped at once."""

_FORGOTTEN_S = 86_400.0
"""Age from which on the lock file of an owner that died may be cleared away."""


class Claimant:
    """One process' right to claim; made by ``claiming``."""

    def __init__(self, ledger: Ledger, locks: Path, owner: str) -> None:
        self._ledger = ledger
        self._locks = locks
        self.owner = owner

    def claim(self, series: Series, interval: Interval, now: datetime) -> bool:
        """Try to claim an interval; False where a living owner has some of it."""
        key = series_key(series)
        if self._ledger.claim(key, [interval], self.owner, now, CLAIM_S):
            return True
        if not self._drop_dead(key, now):
            return False
        return bool(self._ledger.claim(key, [interval], self.owner, now, CLAIM_S))

    def release(self, series: Series, interval: list[Interval]) -> None:
        """Give intervals back, after what they gave is saved."""
        self._ledger.release(self.owner, series_key(series), interval)

    def _drop_dead(self, key: str, now: datetime) -> bool:
        """Drop the claims of owners that no longer live; say whether there were any."""
        owners = {claim.owner for claim in self._ledger.live_claims(key, now)} - {self.owner}
        dead = [owner for owner in owners if not _lives(self._locks, owner)]
        for owner in dead:
            self._ledger.release(owner)
            _lock_of(self._locks, owner).unlink(missing_ok=True)
        return bool(dead)


@contextmanager
def claiming(layout: StoreLayout, ledger: Ledger) -> Iterator[Claimant]:
    """Live as an owner of claims until the end of the block."""
    owner = uuid.uuid4().hex
    layout.require_same()
    with disk_errors(layout.locks):
        make_folder(layout.locks)
        _clear_dead(layout.locks)
    lock = FileLock(_lock_of(layout.locks, owner), timeout=0)
    with lock:
        try:
            yield Claimant(ledger, layout.locks, owner)
        finally:
            ledger.release(owner)
            _lock_of(layout.locks, owner).unlink(missing_ok=True)


def _clear_dead(locks: Path) -> None:
    """Clear away what killed owners left long ago: a new owner's file is never touched."""
    for path in filter(is_regular, locks.glob("owner-*.lock")):
        with suppress(FileNotFoundError):
            is_old = time.time() - path.stat().st_mtime > _FORGOTTEN_S
            if is_old and not _is_held(path):
                path.unlink()


def is_in_hand(layout: StoreLayout, ledger: Ledger, key: str, now: datetime) -> bool:
    """Say whether a living owner is asking for some of a series, by the series' ledger key."""
    owners = {claim.owner for claim in ledger.live_claims(key, now)}
    return any(_lives(layout.locks, owner) for owner in owners)


def _lives(locks: Path, owner: str) -> bool:
    path = _lock_of(locks, owner)
    return is_regular(path) and _is_held(path)


def _is_held(path: Path) -> bool:
    try:
        with FileLock(path, timeout=0):
            return False
    except Timeout:
        return True


def _lock_of(locks: Path, owner: str) -> Path:
    return locks / f"owner-{owner}.lock"
