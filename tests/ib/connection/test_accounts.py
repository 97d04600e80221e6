"""Logins have numbers that say nothing about their accounts, the same in every process."""

import asyncio
import hashlib
import json
import logging
import stat
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ktrdr_pipelines.domain.planning.responses import NoData
from ktrdr_pipelines.errors import DiskError, GatewayError
from ktrdr_pipelines.ib.connection.accounts import AccountFilter, Logins
from ktrdr_pipelines.ib.source import GatewaySource, open_source

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


ACCOUNT = "U" + "7654321"

OTHER = "DU" + "1122334"


def frame(*fields: object) -> bytes:
    """Write a frame as a gateway does."""
    text = "".join(f"{field}\0" for field in fields).encode()
    return len(text).to_bytes(4) + text


def knowing(*accounts: str) -> AccountFilter:
    """Make a filter that has seen accounts announced."""
    known = AccountFilter()
    known.cleaned(frame(15, 1, ",".join(accounts)))
    return known


def test_the_announcement_is_learned_and_hidden() -> None:
    """As many placeholders as accounts stand in it, and a second one adds to the first."""
    known = AccountFilter()
    assert known.cleaned(frame(15, 1, f"{ACCOUNT}, {OTHER},")) == frame(
        15, 1, "(account),(account),"
    )
    assert known.announced == (ACCOUNT, OTHER)
    known.cleaned(frame(15, 1, "DFX1"))
    assert known.announced == (ACCOUNT, OTHER, "DFX1")


@pytest.mark.parametrize(
    ("reason", "clean"),
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
def test_a_frame_is_cleaned_by_its_kind(reason: tuple[Any, ...], clean: tuple[Any, ...]) -> None:
    """Texts lose what looks like an account, values only what was announced."""
    assert knowing(ACCOUNT).cleaned(frame(*reason)) == frame(*clean)


def test_texts_of_other_encodings_stay_as_they_are() -> None:
    """A gateway's own language is no reason to change a byte."""
    text = "4\0002\000-1\0001100\000Verbindung verloren: ä 中\0\0".encode()
    greeting = b"178\x0020260105 12:00:00 \xd6\xd0\xb9\xfa\x00"
    for content in (text, greeting):
        framed = len(content).to_bytes(4) + content
        assert knowing(ACCOUNT).cleaned(framed) == framed


def test_bars_cost_next_to_nothing() -> None:
    """A day of seconds is looked through in milliseconds: it holds numbers alone."""
    bars = [1767623400, 185.01, 185.5, 184.25, 185.0, 1234, 185.1, 17] * 86_400
    long, known = frame(17, 3, "", "", 86_400, *bars), knowing(ACCOUNT, OTHER)
    began = time.perf_counter()
    assert known.cleaned(long) == long
    assert time.perf_counter() - began < 0.5


@pytest.mark.parametrize(
    "code", [100, 162, 165, 200, 321, 322, 354, 10089, 10187, 10197, 10314, 4711]
)
def test_no_error_of_a_request_names_the_account(
    bench: Any, minute_request: Any, caplog: pytest.LogCaptureFixture, code: int
) -> None:
    """Neither its text, its cause, nor anything that is logged on the way."""
    caplog.set_level(logging.DEBUG)

    def refuse(talk: Any, fields: list[str]) -> None:
        reject = f'{{"reject":"{ACCOUNT}"}}'
        talk.send(4, 2, -1, 2104, f"Market data farm connection is OK:usfarm {ACCOUNT}", reject)
        talk.send(4, 2, fields[1], code, f"Error for {ACCOUNT.lower()}, {ACCOUNT[1:]}", reject)

    async def ask(source: GatewaySource) -> str:
        try:
            answer = await source.bars(minute_request)
        except GatewayError as error:
            return f"{error!r} {error} {error.__cause__!r} {error.__context__!r} {vars(error)}"
        assert isinstance(answer, NoData)
        return answer.message

    told = bench(ask, account=ACCOUNT, bars=refuse, outage_s=0.2)
    assert ACCOUNT[1:] not in told + caplog.text
    assert "(account)" in told + caplog.text


def test_an_answer_that_cannot_be_read_does_not_name_the_account(
    bench: Any, minute_request: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """Errors of reading quote what came."""
    caplog.set_level(logging.DEBUG)

    def garble(talk: Any, fields: list[str]) -> None:
        talk.send(17, fields[1], ACCOUNT, ACCOUNT, 1, ACCOUNT, *(ACCOUNT for _ in range(7)))

    async def ask(source: GatewaySource) -> str:
        with pytest.raises(GatewayError) as caught:
            await source.bars(minute_request)
        return f"{caught.value!r} {caught.value} {caught.value.__cause__!r}"

    told = bench(ask, account=ACCOUNT, bars=garble)
    assert ACCOUNT[1:] not in told + caplog.text


def test_a_refused_connection_does_not_name_the_account(
    gateways: Any, config: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """What a gateway says before it names its accounts is told as the reason."""
    caplog.set_level(logging.DEBUG)

    def refuse(talk: Any, fields: list[str]) -> None:
        talk.error(-1, 321, f"Error for {ACCOUNT}")

    gateway = gateways(start=refuse)

    async def connect() -> None:
        async with open_source(replace(config, port=gateway.port, timeout_s=0.5)):
            pass

    with pytest.raises(GatewayError) as caught:
        asyncio.run(connect())
    assert ACCOUNT[1:] not in f"{caught.value} {caught.value!r} {caught.value.__cause__}"
    assert "Error for (account)" in str(caught.value)
    assert ACCOUNT[1:] not in caplog.text
