"""Owners of claims and operations; two runs never request the same chunk at the same time.

A claim has a time limit and an owner. An owner holds a file lock for its whole life, which shows
whether its process still runs: the claims of a killed process are dropped at once, and its
operations are known to be interrupted.

Not here: the table of claims (``store.ledger.claims``), the lock of a series
(``store.bars.bar_store``).
"""

import time
import uuid
from collections.abc import Iterator, Sequence
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
"""Seconds that a claim lasts unless it is released: longer than a request ever waits for its
permit, including pauses after pacing violations and many requests ahead of it. It limits owners
that hang; the claims of dead owners are dropped at once."""

_STALE_LOCK_S = 86_400.0
"""Age in seconds from which the lock file of a dead owner may be removed."""


class Claimant:
    """One owner of claims; created by ``claiming``."""

    def __init__(self, ledger: Ledger, locks: Path, owner: str) -> None:
        self._ledger = ledger
        self._locks = locks
        self.owner = owner

    def claim_each(
        self, series: Series, intervals: Sequence[Interval], now: datetime
    ) -> list[Interval]:
        """Claim several intervals in one transaction, in which queued audit rows are stored too.

        Returns: those that were granted. Others are refused because a living owner has claimed
        part of them; owners that died are only looked for where the first interval is refused.
        """
        granted = self._acquire(series, intervals, now)
        if intervals[0] in granted or not self._drop_dead(series_key(series), now):
            return granted
        return self._acquire(series, intervals, now)

    def _acquire(
        self, series: Series, intervals: Sequence[Interval], now: datetime
    ) -> list[Interval]:
        key = series_key(series)
        with self._ledger.requests.with_queued():
            return self._ledger.claims.acquire(key, intervals, self.owner, now, CLAIM_S)

    def release(self, series: Series, interval: list[Interval]) -> None:
        """Release claimed intervals; the caller has saved their bars already."""
        self._ledger.claims.release(self.owner, series_key(series), interval)

    def _drop_dead(self, key: str, now: datetime) -> bool:
        """Drop the claims of dead owners; return whether there were any."""
        owners = {claim.owner for claim in self._ledger.claims.live(key, now)} - {self.owner}
        dead = [owner for owner in owners if not _is_alive(self._locks, owner)]
        for owner in dead:
            self._ledger.claims.release(owner)
            _lock_of(self._locks, owner).unlink(missing_ok=True)
        return bool(dead)


@contextmanager
def claiming(layout: StoreLayout, ledger: Ledger) -> Iterator[Claimant]:
    """Yield an owner of claims that lives until the end of the block."""
    with living_owner(layout) as owner:
        try:
            yield Claimant(ledger, layout.locks, owner)
        finally:
            ledger.claims.release(owner)


@contextmanager
def living_owner(layout: StoreLayout) -> Iterator[str]:
    """Yield the id of a new owner, who lives until the end of the block, in whatever thread."""
    owner = uuid.uuid4().hex
    layout.require_same()
    with disk_errors(layout.locks):
        make_folder(layout.locks)
        # Remove what killed owners left long ago; the file of a new owner is never touched.
        for path in filter(is_regular, layout.locks.glob("owner-*.lock")):
            with suppress(FileNotFoundError):
                is_old = time.time() - path.stat().st_mtime > _STALE_LOCK_S
                if is_old and not _is_held(path):
                    path.unlink()
    lock = FileLock(_lock_of(layout.locks, owner), timeout=0, thread_local=False)
    with lock:
        try:
            yield owner
        finally:
            _lock_of(layout.locks, owner).unlink(missing_ok=True)


def is_requested(layout: StoreLayout, ledger: Ledger, key: str, now: datetime) -> bool:
    """Return whether a living owner is requesting part of a series, given by its ledger key."""
    owners = {claim.owner for claim in ledger.claims.live(key, now)}
    return any(_is_alive(layout.locks, owner) for owner in owners)


def is_owner_alive(layout: StoreLayout, owner: str) -> bool:
    """Return whether the process of an owner still runs; the answer may be late by a moment."""
    return _is_alive(layout.locks, owner)


def _is_alive(locks: Path, owner: str) -> bool:
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
