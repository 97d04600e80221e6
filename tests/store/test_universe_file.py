"""The universe's file: read as people and systems write it, and its last good state kept."""

import os
from dataclasses import replace
from datetime import date
from pathlib import Path

import pytest

from ktrdr_pipelines.domain.universe.universe import Windows
from ktrdr_pipelines.errors import DiskError, UniverseError
from ktrdr_pipelines.store.universe_file import UniverseFile, load_universe
from tests.support.universes import AAPL, GOOD


def file(tmp_path: Path, text: str = GOOD) -> UniverseFile:
    """Make a universe file whose copy lies in a folder beside it."""
    (tmp_path / "universe.yaml").write_text(text)
    return UniverseFile(tmp_path / "universe.yaml", tmp_path / "state" / "universe.good.yaml")


def test_a_missing_file_is_told_with_the_remedy(tmp_path: Path) -> None:
    """The way to a first universe is ``ktrdr init``."""
    with pytest.raises(UniverseError, match=r"no such file. Hint: Create one with `ktrdr init`"):
        load_universe(tmp_path / "universe.yaml")


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16"])
def test_a_file_in_another_encoding_is_told(tmp_path: Path, encoding: str) -> None:
    """Only UTF-8 is read."""
    path = tmp_path / "universe.yaml"
    path.write_bytes("# für später\nsymbols: {AAPL: }".encode(encoding))
    with pytest.raises(UniverseError, match=r"is not UTF-8\. Hint: Save the file as UTF-8"):
        load_universe(path)


def test_a_file_as_windows_writes_it_is_read(tmp_path: Path) -> None:
    """A byte order mark and other line ends do no harm."""
    path = tmp_path / "universe.yaml"
    path.write_bytes(b"\xef\xbb\xbf" + GOOD.replace("\n", "\r\n").encode())
    assert load_universe(path).instrument("AAPL") == AAPL


def test_a_folder_in_place_of_the_file_is_told(tmp_path: Path) -> None:
    """What cannot be read is an error and no traceback."""
    with pytest.raises(UniverseError, match="cannot be read"):
        load_universe(tmp_path)


@pytest.mark.skipif(not Path("/dev/fd").exists(), reason="the system has no /dev/fd")
def test_the_output_of_a_command_is_read_as_a_file() -> None:
    """A shell passes it as an open pipe below /dev/fd; a pipe with a name is refused."""
    reading, writing = os.pipe()
    with os.fdopen(reading, "rb"):
        with os.fdopen(writing, "wb") as pipe:
            pipe.write(GOOD.encode())
        assert load_universe(Path(f"/dev/fd/{reading}")).instrument("AAPL") == AAPL


def test_a_named_pipe_is_refused(tmp_path: Path) -> None:
    """Opening it would block, in shared memory (which lies below /dev) as anywhere else."""
    path = tmp_path / "universe.yaml"
    os.mkfifo(path)
    with pytest.raises(UniverseError, match="it is a pipe"):
        load_universe(path)


def test_a_good_file_is_kept(tmp_path: Path) -> None:
    """Its copy has the same text, and nothing else is left behind."""
    universe, trouble = file(tmp_path, GOOD).read()
    assert trouble is None
    assert list(universe.instruments) == ["AAPL"]
    assert (tmp_path / "state" / "universe.good.yaml").read_text() == GOOD
    assert [path.name for path in (tmp_path / "state").iterdir()] == ["universe.good.yaml"]


@pytest.mark.parametrize("edit", ["symbols: [", "", None])
def test_a_bad_edit_keeps_the_last_good_universe(tmp_path: Path, edit: str | None) -> None:
    """The older state stands in and the problem is told, until the file is good again."""
    universe_file = file(tmp_path)
    good, _ = universe_file.read()
    if edit is None:
        universe_file.path.unlink()
    else:
        universe_file.path.write_text(edit)
    standing, trouble = universe_file.read()
    assert standing == good
    assert trouble is not None
    assert "universe.yaml" in str(trouble)
    assert universe_file.last_good.read_text() == GOOD
    universe_file.path.write_text("symbols: {MSFT: }")
    fixed, none = universe_file.read()
    assert (list(fixed.instruments), none) == (["MSFT"], None)
    assert universe_file.last_good.read_text() == "symbols: {MSFT: }"


@pytest.mark.parametrize(
    ("edit", "symbols", "start"),
    [
        ("AAPL: {start: soon}, MSFT: {}, NEW: {timeframes: [9m]}", ["AAPL", "MSFT"], "2021-01-04"),
        ("NEW: {}, MSFT: {start: soon}, AAPL: {}", ["NEW", "MSFT", "AAPL"], "2020-01-01"),
        ("AAPL: {start: 2022-01-03}, MSFT: {}, MSFT: {}", ["AAPL", "MSFT"], "2022-01-03"),
    ],
)
def test_malformed_entries_are_as_before_and_the_others_as_edited(
    tmp_path: Path, edit: str, symbols: list[str], start: str
) -> None:
    """A new one is left out; the copy has the text in use, and a later bad edit builds on it."""
    universe_file = file(tmp_path, "symbols: {AAPL: {start: 2021-01-04}, MSFT: {}}")
    universe_file.read()
    universe_file.path.write_text(f"# mine\nsymbols: {{{edit}}}\n")
    for _ in range(2):
        universe, problem = universe_file.read()
        assert list(universe.instruments) == symbols
        assert str(universe.instrument("AAPL").start) == start
        assert "symbols > " in str(problem)
        assert universe.problems
    assert list(load_universe(universe_file.last_good).instruments) == symbols
    universe_file.path.write_text("symbols: {AAPL: 5, MSFT: 5}")
    universe, problem = universe_file.read()
    assert set(universe.instruments) == set(symbols)
    assert str(universe.instrument("AAPL").start) == start
    assert len(str(problem).splitlines()) == 2


def test_an_ended_instrument_ends_with_its_last_held_session(tmp_path: Path) -> None:
    """Without a held session its history is still expected; others have no end."""
    text = "symbols: {AAPL: {ended: true}, MSFT: {ended: true}, SPY: {}}"
    held = {"AAPL": date(2024, 3, 1)}
    universe_file = replace(file(tmp_path, text), last_session=held.get)
    universe, _ = universe_file.read()
    ends = {symbol: one.end for symbol, one in universe.instruments.items()}
    assert ends == {"AAPL": date(2024, 3, 2), "MSFT": None, "SPY": None}


@pytest.mark.parametrize("copy", [None, "symbols: ["])
def test_without_a_good_copy_a_bad_file_is_an_error(tmp_path: Path, copy: str | None) -> None:
    """There is nothing to stand in; the text is about the file that a person edits."""
    universe_file = file(tmp_path, "symbols: {AAPL: 5}")
    if copy is not None:
        universe_file.last_good.parent.mkdir()
        universe_file.last_good.write_text(copy)
    with pytest.raises(UniverseError, match=r"universe\.yaml, line 1, symbols > AAPL"):
        universe_file.read()


def test_an_unchanged_file_is_not_copied_again(tmp_path: Path) -> None:
    """Sensors read often; the copy is written only when there is something new."""
    universe_file = file(tmp_path)
    universe_file.read()
    before = universe_file.last_good.stat()
    universe_file.read()
    after = universe_file.last_good.stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)


def test_a_copy_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    """A file where the folder should be is an error with the path."""
    universe_file = file(tmp_path)
    (tmp_path / "state").write_text("in the way")
    with pytest.raises(DiskError, match=r"universe\.good\.yaml") as caught:
        universe_file.read()
    assert "ktrdr repair" in caught.value.hint


def test_windows_in_use_are_remembered_and_begin_no_later_after_an_edit(tmp_path: Path) -> None:
    """A later start has no effect and is told; an earlier one is used from then on."""
    path, record = tmp_path / "universe.yaml", tmp_path / "windows.json"
    universe = UniverseFile(path, tmp_path / "good.yaml", windows=record)
    for text, used, is_told in (
        ("1m: 2020-07, yearly: 1990", Windows(2020, 1990), False),
        ("1m: 2022, yearly: 1985", Windows(2020, 1985), True),
        ("1m: 2018, yearly: 1985", Windows(2018, 1985), False),
    ):
        path.write_text(f"windows: {{{text}}}\n{GOOD}")
        assert universe.use_windows() == used
        assert universe.read()[0].windows == used
        assert bool(universe.read()[0].windows_notice) is is_told
    record.write_text("{")
    assert universe.read()[0].windows == Windows(2018, 1985)
