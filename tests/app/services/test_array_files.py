"""Arrays that are kept in files, and when they are computed again."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from ktrdr_pipelines.app.services import array_files
from ktrdr_pipelines.app.services.array_files import ArrayFiles
from ktrdr_pipelines.domain.calendars.kept_arrays import Arrays, keep_arrays_in, kept_arrays
from ktrdr_pipelines.domain.calendars.registry import calendar_named

NAME = "clocks of America/New_York"


class Computation:
    """Returns arrays, and counts how often it was called."""

    def __init__(self, zone: str = "America/New_York") -> None:
        self.zone, self.calls = zone, 0

    def __call__(self) -> Arrays:
        """Return arrays with a number that is another one at each call."""
        self.calls += 1
        return {
            "zone": np.array(self.zone),
            "days": np.array(["2024-01-02"], "datetime64[D]"),
            "breaks": np.empty((0, 2), np.int64),
            "call": np.array(self.calls),
        }


@pytest.fixture(autouse=True)
def kept() -> Iterator[None]:
    """Keep no arrays after a test."""
    yield
    keep_arrays_in(None)


def test_arrays_are_computed_once_for_all_processes(tmp_path: Path) -> None:
    """Another process finds them as they were, with their types and shapes."""
    compute = Computation()
    for _ in range(2):
        keep_arrays_in(ArrayFiles(tmp_path / "sessions"))
        found = kept_arrays(NAME, compute)
    assert compute.calls == 1
    assert found["zone"].item() == "America/New_York"
    assert found["days"].dtype == np.dtype("datetime64[D]")
    assert found["breaks"].shape == (0, 2)
    (file,) = (tmp_path / "sessions").iterdir()
    assert file.name == "clocks of America%2FNew_York.npz"


def test_other_versions_compute_again(tmp_path: Path) -> None:
    """What another version of a library or of the code computed is replaced."""
    compute = Computation()
    for versions in ("1", "2", "2"):
        keep_arrays_in(ArrayFiles(tmp_path, versions))
        found = kept_arrays(NAME, compute)
    assert compute.calls == 2
    assert found["call"].item() == 2


def test_other_clocks_compute_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A new database of time zones makes the sessions of the zones that it changes outdated."""
    database = tmp_path / "zoneinfo"
    (database / "America").mkdir(parents=True)
    compute = Computation()
    monkeypatch.setattr("zoneinfo.TZPATH", (str(database),))
    for rules in (b"rules", b"other rules", b"other rules"):
        array_files._clocks_of.cache_clear()  # as in a new process
        (database / "America" / "New_York").write_bytes(rules)
        keep_arrays_in(ArrayFiles(tmp_path / "sessions", "1"))
        kept_arrays(NAME, compute)
    array_files._clocks_of.cache_clear()
    assert compute.calls == 2


def _cut(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    at = content.index(np.datetime64("2024-01-02", "D").tobytes())
    content[at] ^= 1
    path.write_bytes(content)


def _replace_by_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize(
    "damage",
    [_cut, _flip, _replace_by_folder, lambda path: path.write_bytes(b"")],
    ids=["cut", "flipped", "a folder", "empty"],
)
def test_a_damaged_file_is_computed_again(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    """A damaged file is never used, and no error."""
    compute = Computation()
    keep_arrays_in(ArrayFiles(tmp_path, "1"))
    kept_arrays(NAME, compute)
    (file,) = tmp_path.iterdir()
    damage(file)
    assert kept_arrays(NAME, compute)["call"].item() == 2
    assert kept_arrays(NAME, compute)["days"][0] == np.datetime64("2024-01-02")


def test_a_folder_that_cannot_be_written_keeps_nothing(tmp_path: Path) -> None:
    """The arrays are computed each time, without an error."""
    (tmp_path / "file").write_bytes(b"")
    compute = Computation()
    keep_arrays_in(ArrayFiles(tmp_path / "file" / "sessions", "1"))
    assert [kept_arrays(NAME, compute)["call"].item() for _ in range(2)] == [1, 2]


@pytest.mark.parametrize("key", ["XNYS.RTH", "XHKG.RTH", "FX", "CRYPTO", "GLOBEX.GRAINS"])
def test_a_kept_calendar_has_the_same_sessions(tmp_path: Path, key: str) -> None:
    """Breaks, zone, roll and what its days may be are kept, too."""
    build = calendar_named.__wrapped__
    keep_arrays_in(ArrayFiles(tmp_path))
    first, again = build(key), build(key)
    assert (tmp_path / f"{key}.npz").is_file()
    assert again.is_same(first)
    assert again.is_same(calendar_named(key))
    assert (again.key, again.days_may_differ) == (key, first.days_may_differ)
