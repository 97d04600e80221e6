"""Configuration and fixtures of every test."""

import gc
import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.examples import register_profiles

register_profiles()

_MEMORY = Path("/dev/shm")  # noqa: S108  (a file system in memory, where Linux has one)
_MEMORY_BYTES = 2 << 30


def pytest_configure() -> None:
    """Put temporary folders into memory if there is enough: fsync takes most of their time.

    ``PYTEST_DEBUG_TEMPROOT`` is pytest's own variable for the root of ``tmp_path``.
    """
    if os.access(_MEMORY, os.W_OK) and shutil.disk_usage(_MEMORY).free > _MEMORY_BYTES:
        os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(_MEMORY))


def pytest_collection_finish() -> None:
    """Take what all tests share out of garbage collections.

    With modules and thousands of tests on the heap, one takes more than half a second, in which
    neither a gateway in the same process nor its client goes on: too long for short deadlines.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture
def tmp_path(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """Give a test its folder: in memory, or on disk if it is marked ``on_disk``."""
    if request.node.get_closest_marker("on_disk") is None:
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(prefix="ktrdr-test-", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


@pytest.fixture(autouse=True, scope="session")
def interrupts_arrive() -> None:
    """Let SIGINT arrive in the tests and in the processes that they start.

    A shell starts background jobs with SIGINT ignored, and children inherit that.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)
