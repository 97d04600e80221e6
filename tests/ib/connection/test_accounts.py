"""Logins have numbers that reveal nothing of their accounts, the same in every process."""

import asyncio
import hashlib
import json
import logging
import stat
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ktrdr_pipelines.domain.planning.responses import NoData
from ktrdr_pipelines.errors import DiskError, GatewayError
from ktrdr_pipelines.ib.connection.accounts import AccountFilter, Logins
from ktrdr_pipelines.ib.source import GatewaySource, open_source
from tests.support.costs import costs

ACCOUNTS = [f"U{7654321 + number}" for number in range(12)]


def test_a_login_keeps_its_number(tmp_path: Path) -> None:
    """Neither the order of its accounts nor a new object changes the number of a login."""
    logins = Logins(tmp_path)
    assert [logins.name_of([one]) for one in ACCOUNTS[:3]] == ["login 1", "login 2", "login 3"]
    assert logins.name_of(ACCOUNTS[:2]) == "login 4"
    assert Logins(tmp_path).name_of(ACCOUNTS[1::-1]) == "login 4"
    assert Logins(tmp_path).name_of(ACCOUNTS[:1]) == "login 1"


def test_the_files_do_not_reveal_accounts(
    tmp_path: Path,
) -> None:
    """The files hold no account and no plain hash of one, and each folder has its own key."""
    marks = []
    for name in ("a", "b"):
        Logins(tmp_path / name).name_of(ACCOUNTS[:1])
        marks.append(json.loads((tmp_path / name / "logins.json").read_text()))
    assert marks[0] != marks[1]
    content = b"".join(one.read_bytes() for one in tmp_path.rglob("*") if one.is_file())
    assert ACCOUNTS[0][1:].encode() not in content
    for prefix in ("", "ktrdr-pipelines account:"):
        for kind in ("md5", "sha1", "sha256", "sha512", "blake2b", "blake2s"):
            digest = hashlib.new(kind, f"{prefix}{ACCOUNTS[0]}".encode()).hexdigest()
            assert digest[:16].encode() not in content


def test_the_files_are_private(tmp_path: Path) -> None:
    """Only their user may read the files and their folder."""
    folder = tmp_path / "state"
    Logins(folder).name_of(ACCOUNTS[:1])
    modes = {one.name: stat.S_IMODE(one.stat().st_mode) for one in folder.iterdir()}
    assert modes.keys() >= {"logins.json", "logins.key"}
    assert set(modes.values()) == {0o600}
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


@pytest.mark.parametrize("content", [None, "", "not hexadecimal", "00ff"])
def test_a_lost_key_gives_logins_new_numbers(tmp_path: Path, content: str | None) -> None:
    """The new number is one that no login had before."""
    Logins(tmp_path).name_of(ACCOUNTS[:1])
    key = tmp_path / "logins.key"
    key.unlink() if content is None else key.write_text(content)
    assert Logins(tmp_path).name_of(ACCOUNTS[:1]) == "login 2"
    assert Logins(tmp_path).name_of(ACCOUNTS[:1]) == "login 2"


@pytest.mark.parametrize("content", [None, "", "{", "[]", '{"a": "x"}', "\xff"])
def test_lost_numbers_restart_at_one(tmp_path: Path, content: str | None) -> None:
    """A file of numbers that cannot be read does not stop a run."""
    Logins(tmp_path).name_of(ACCOUNTS[:1])
    numbers = tmp_path / "logins.json"
    numbers.unlink() if content is None else numbers.write_text(content, encoding="latin-1")
    assert [Logins(tmp_path).name_of([one]) for one in ACCOUNTS[1:3]] == ["login 1", "login 2"]


def test_an_unusable_folder_is_a_disk_error(tmp_path: Path) -> None:
    """The error of an unusable folder names KTRDR_STATE."""
    (tmp_path / "file").write_text("")
    with pytest.raises(DiskError, match="KTRDR_STATE"):
        Logins(tmp_path / "file" / "state").name_of(ACCOUNTS[:1])


def test_processes_agree_about_the_numbers(tmp_path: Path) -> None:
    """Concurrent processes that meet logins in different orders give them the same numbers."""
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
    shown = [set(one.communicate("go\n", timeout=60)[0].splitlines()) for one in workers]
    assert [one.returncode for one in workers] == [0] * len(workers)
    assert shown == [shown[0]] * len(shown)
    numbers = sorted(int(line.rpartition(" ")[2]) for line in shown[0])
    assert numbers == list(range(1, len(ACCOUNTS) + 1))


ACCOUNT = "U" + "7654321"

OTHER = "DU" + "1122334"


def frame(*fields: object) -> bytes:
    """Return the bytes of a frame."""
    text = "".join(f"{field}\0" for field in fields).encode()
    return len(text).to_bytes(4) + text


def filter_knowing(*accounts: str) -> AccountFilter:
    """Return a filter to which accounts were announced."""
    known = AccountFilter()
    known.cleaned(frame(15, 1, ",".join(accounts)))
    return known


def test_the_announcement_is_learned_and_hidden() -> None:
    """Each announced account becomes a placeholder, and a second message 15 adds to the first."""
    known = AccountFilter()
    assert known.cleaned(frame(15, 1, f"{ACCOUNT}, {OTHER},")) == frame(
        15, 1, "(account),(account),"
    )
    assert known.announced == (ACCOUNT, OTHER)
    known.cleaned(frame(15, 1, "DFX1"))
    assert known.announced == (ACCOUNT, OTHER, "DFX1")


@pytest.mark.parametrize(
    ("frame_fields", "cleaned_fields"),
    [
        (
            (4, 2, 7654321, 321, f"Error for {ACCOUNT}", f'{{"account":"{OTHER.lower()}"}}'),
            (4, 2, 7654321, 321, "Error for (account)", '{"account":"(account)"}'),
        ),
        (
            (4, 2, -1, 2104, f"Market data farm connection is OK:usfarm ({ACCOUNT[1:]})", ""),
            (4, 2, -1, 2104, "Market data farm connection is OK:usfarm ((account))", ""),
        ),
        (
            (10, 7, "X", f"a{ACCOUNT}", 7654321, "F" + "12033134", f"Fund of {OTHER} Inc"),
            (10, 7, "X", "a(account)", 7654321, "F" + "12033134", "Fund of (account) Inc"),
        ),
        ((17, 3, "", "", 1, ACCOUNT, 1.5), (17, 3, "", "", 1, "(account)", 1.5)),
        ((17, 3, "", "", 1, "20240102", 7654321), (17, 3, "", "", 1, "20240102", 7654321)),
        ((88, 3, f"{ACCOUNT.lower()}"), (88, 3, "(account)")),
        ((6, 2, "Cash", "1.0", "USD", OTHER), (6, 2, "Cash", "1.0", "USD", "(account)")),
        ((178, "20260105 12:00:00 EST"), (178, "20260105 12:00:00 EST")),
    ],
)  # fmt: skip
def test_a_frame_is_cleaned_by_its_kind(
    frame_fields: tuple[Any, ...], cleaned_fields: tuple[Any, ...]
) -> None:
    """Texts lose everything that looks like an account, values only announced accounts."""
    assert filter_knowing(ACCOUNT).cleaned(frame(*frame_fields)) == frame(*cleaned_fields)


def test_texts_of_other_encodings_stay_as_they_are() -> None:
    """No byte of a text in the gateway's own language changes."""
    text = "4\0002\000-1\0001100\000Verbindung verloren: ä 中\0\0".encode()
    greeting = b"178\x0020260105 12:00:00 \xd6\xd0\xb9\xfa\x00"
    for content in (text, greeting):
        framed = len(content).to_bytes(4) + content
        assert filter_knowing(ACCOUNT).cleaned(framed) == framed


def test_cleaning_bars_is_fast() -> None:
    """A day of seconds, which holds numbers only, costs less than to cut it into fields."""
    bars = [1767623400, 185.01, 185.5, 184.25, 185.0, 1234, 185.1, 17] * 86_400
    long, known = frame(17, 3, "", "", 86_400, *bars), filter_knowing(ACCOUNT, OTHER)
    assert known.cleaned(long) == long
    found = costs(
        {"clean": lambda: known.cleaned(long), "cut": lambda: long.split(b"\0")}, rounds=5
    )
    assert found["clean"].over(found["cut"]) < 1


@pytest.mark.parametrize(
    "code", [100, 162, 165, 200, 321, 322, 354, 10089, 10187, 10197, 10314, 4711]
)
def test_no_error_of_a_request_names_the_account(
    harness: Any, minute_request: Any, caplog: pytest.LogCaptureFixture, code: int
) -> None:
    """Neither the error, its causes nor the log names the account."""
    caplog.set_level(logging.DEBUG)

    def refuse(client: Any, fields: list[str]) -> None:
        reject = f'{{"reject":"{ACCOUNT}"}}'
        client.send(4, 2, -1, 2104, f"Market data farm connection is OK:usfarm {ACCOUNT}", reject)
        client.send(4, 2, fields[1], code, f"Error for {ACCOUNT.lower()}, {ACCOUNT[1:]}", reject)

    async def ask(source: GatewaySource) -> str:
        try:
            answer = await source.bars(minute_request)
        except GatewayError as error:
            return f"{error!r} {error} {error.__cause__!r} {error.__context__!r} {vars(error)}"
        assert isinstance(answer, NoData)
        return answer.message

    shown = harness(ask, account=ACCOUNT, bars=refuse, outage_s=0.2)
    assert ACCOUNT[1:] not in shown + caplog.text
    assert "(account)" in shown + caplog.text


def test_an_unreadable_response_does_not_name_the_account(
    harness: Any, minute_request: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """Errors of reading quote the response, without the account."""
    caplog.set_level(logging.DEBUG)

    def garble(client: Any, fields: list[str]) -> None:
        client.send(17, fields[1], ACCOUNT, ACCOUNT, 1, ACCOUNT, *(ACCOUNT for _ in range(7)))

    async def ask(source: GatewaySource) -> str:
        with pytest.raises(GatewayError) as caught:
            await source.bars(minute_request)
        return f"{caught.value!r} {caught.value} {caught.value.__cause__!r}"

    shown = harness(ask, account=ACCOUNT, bars=garble)
    assert ACCOUNT[1:] not in shown + caplog.text


def test_a_refused_connection_does_not_name_the_account(
    gateways: Any, config: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """The reason quotes the gateway's message, without the account that it names."""
    caplog.set_level(logging.DEBUG)

    def refuse(client: Any, fields: list[str]) -> None:
        client.error(-1, 321, f"Error for {ACCOUNT}")

    gateway = gateways(start=refuse)

    async def connect() -> None:
        async with open_source(replace(config, port=gateway.port, timeout_s=0.5)):
            pass

    with pytest.raises(GatewayError) as caught:
        asyncio.run(connect())
    assert ACCOUNT[1:] not in f"{caught.value} {caught.value!r} {caught.value.__cause__}"
    assert "Error for (account)" in str(caught.value)
    assert ACCOUNT[1:] not in caplog.text
