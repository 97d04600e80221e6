"""Frames of a gateway lose the account numbers before anything else sees them."""

import asyncio
import logging
import time
from dataclasses import replace
from typing import Any

import pytest

from ktrdr_pipelines.domain.planning.responses import NoData
from ktrdr_pipelines.errors import GatewayError
from ktrdr_pipelines.ib.connection.accounts import AccountFilter
from ktrdr_pipelines.ib.source import GatewaySource, open_source

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
