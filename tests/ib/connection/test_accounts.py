"""Logins have numbers that say nothing about their accounts, the same in every process."""

import hashlib
import json
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from ktrdr_pipelines.errors import DiskError
from ktrdr_pipelines.ib.connection.accounts import Logins

ACCOUNTS = [f"U{7654321 + number}" for number in range(12)]


def test_a_login_keeps_its_number(tmp_path: Path) -> None:
    """In any order of its accounts, and for an object made later."""
    logins = Logins(tmp_path)
    assert [logins.name_of([one]) for one in ACCOUNTS[:3]] == ["login 1", "login 2", "login 3"]
    assert logins.name_of(ACCOUNTS[:2]) == "login 4"
    assert Logins(tmp_path).name_of(ACCOUNTS[1::-1]) == "login 4"
    assert Logins(tmp_path).name_of(ACCOUNTS[:1]) == "login 1"


def test_the_files_hold_nothing_that_an_account_can_be_computed_from_without_the_key(
    tmp_path: Path,
) -> None:
    """Neither the account nor a plain hash of it; and another folder has other marks."""
    marks = []
    for name in ("a", "b"):
        Logins(tmp_path / name).name_of(ACCOUNTS[:1])
        marks.append(json.loads((tmp_path / name / "logins.json").read_text()))
    assert marks[0] != marks[1]
    make_entry = b"".join(one.read_bytes() for one in tmp_path.rglob("*") if one.is_file())
    assert ACCOUNTS[0][1:].encode() not in make_entry
    for prefix in ("", "ktrdr-pipelines account:"):
        for kind in ("md5", "sha1", "sha256", "sha512", "blake2b", "blake2s"):
            digest = hashlib.new(kind, f"{prefix}{ACCOUNTS[0]}".encode()).hexdigest()
            assert digest[:16].encode() not in make_entry


def test_the_files_are_private(tmp_path: Path) -> None:
    """Their folder, too."""
    folder = tmp_path / "state"
    Logins(folder).name_of(ACCOUNTS[:1])
    modes = {one.name: stat.S_IMODE(one.stat().st_mode) for one in folder.iterdir()}
    assert modes.keys() >= {"logins.json", "logins.key"}
    assert set(modes.values()) == {0o600}
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


@pytest.mark.parametrize("content", [None, "", "not hexadecimal", "00ff"])
def test_a_lost_key_begins_new_numbers(tmp_path: Path, content: str | None) -> None:
    """None of them is one that had another meaning before."""
    Logins(tmp_path).name_of(ACCOUNTS[:1])
    key = tmp_path / "logins.key"
    key.unlink() if content is None else key.write_text(content)
    assert Logins(tmp_path).name_of(ACCOUNTS[:1]) == "login 2"
    assert Logins(tmp_path).name_of(ACCOUNTS[:1]) == "login 2"


@pytest.mark.parametrize("content", [None, "", "{", "[]", '{"a": "x"}', "\xff"])
def test_lost_numbers_begin_anew(tmp_path: Path, content: str | None) -> None:
    """A file that cannot be read stops no work."""
    Logins(tmp_path).name_of(ACCOUNTS[:1])
    numbers = tmp_path / "logins.json"
    numbers.unlink() if content is None else numbers.write_text(content, encoding="latin-1")
    assert [Logins(tmp_path).name_of([one]) for one in ACCOUNTS[1:3]] == ["login 1", "login 2"]


def test_a_folder_that_cannot_be_used_is_told(tmp_path: Path) -> None:
    """With the way out."""
    (tmp_path / "file").write_text("")
    with pytest.raises(DiskError, match="KTRDR_STATE"):
        Logins(tmp_path / "file" / "state").name_of(ACCOUNTS[:1])


def test_processes_agree_about_the_numbers(tmp_path: Path) -> None:
    """Several at once meet several logins, each in an order of its own."""
    code = (
        "import sys; from pathlib import Path\n"
        "from ktrdr_pipelines.ib.connection.accounts import Logins\n"
        "logins = Logins(Path(sys.argv[1])); sys.stdin.readline()\n"
        "for one in sys.argv[2:]: print(one, logins.name_of([one]))"
    )
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path), *ACCOUNTS[at:], *ACCOUNTS[:at]],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for at in (0, 3, 6, 9)
    ]
    told = [set(one.communicate("go\n", timeout=60)[0].splitlines()) for one in workers]
    assert [one.returncode for one in workers] == [0] * len(workers)
    assert told == [told[0]] * len(told)
    numbers = sorted(int(line.rpartition(" ")[2]) for line in told[0])
    assert numbers == list(range(1, len(ACCOUNTS) + 1))
