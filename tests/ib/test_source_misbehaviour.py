"""What the source makes of a gateway that misbehaves: a value or a typed error, always in time."""

import asyncio
import logging
from dataclasses import replace
from typing import Any

import pytest

from ktrdr_pipelines.core.answers import Answer, BarRequest
from ktrdr_pipelines.core.instruments import Instrument, Series
from ktrdr_pipelines.core.timeframes import Timeframe
from ktrdr_pipelines.errors import (
    BadAnswerError,
    ConnectionLostError,
    ContractAmbiguousError,
    EntitlementError,
    GatewaySilentError,
    GatewayUnreachableError,
    OutageError,
    PacingError,
    RequestRejectedError,
)
from ktrdr_pipelines.ib.codes import QueryDroppedError
from ktrdr_pipelines.ib.source import GatewaySource

HMDS = "Historical Market Data Service error message:"


def refusing(code: int, text: str) -> Any:
    """Answer requests for bars with an error frame."""
    return lambda talk, fields: talk.error(fields[1], code, text)


@pytest.mark.parametrize(
    ("code", "text", "kind"),
    [
        (321, "Error validating request.-'bM' : cause - Invalid duration", RequestRejectedError),
        (162, f"{HMDS}Historical data request pacing violation", PacingError),
        (162, f"{HMDS}No market data permissions for ISLAND STK.", EntitlementError),
        (
            162,
            f"{HMDS}Trading TWS session is connected from a different IP address",
            EntitlementError,
        ),
        (162, f"{HMDS}Time length exceed max.", RequestRejectedError),
        (162, f"{HMDS}No historical market data for EUR/CASH@FXSUBPIP", RequestRejectedError),
        (162, f"{HMDS}API historical data query cancelled: 3", QueryDroppedError),
        (162, f"{HMDS}something never seen before", BadAnswerError),
        (200, "The contract description specified for AAPL is ambiguous.", ContractAmbiguousError),
        (322, "Only 50 simultaneous API historical data requests allowed.", PacingError),
        (366, "No historical data query found for ticker id:3", QueryDroppedError),
        (10314, "End Date/Time: The date, time, or time-zone entered is invalid.", None),
    ],
)
def test_an_error_frame_fails_its_request_at_once(
    bench: Any, minute_request: BarRequest, code: int, text: str, *, kind: Any
) -> None:
    """Every error that names a request ends it before the deadline, ib_async's warnings too."""

    async def ask(source: GatewaySource) -> None:
        async with asyncio.timeout(0.4):
            await source.bars(minute_request)

    with pytest.raises(kind or RequestRejectedError) as caught:
        bench(ask, bars=refusing(code, text))
    assert caught.value.code == code
    assert "AAPL 1m, 1 D to now" in str(caught.value)


def test_silence_ends_at_the_deadline_and_is_cancelled(
    bench: Any, minute_request: BarRequest, words: Any
) -> None:
    """A request without an answer raises, and the gateway is told to forget it."""

    async def ask(source: GatewaySource) -> None:
        with pytest.raises(GatewaySilentError, match=r"no answer in 0\.5 s"):
            await source.bars(minute_request)
        await source.health()

    bench(ask, bars=words.ignore)
    assert bench.gateway.asked(25) == [["25", "1", bench.gateway.asked(20)[0][1]]]


def test_silence_about_a_head_is_cancelled_too(bench: Any, aapl: Instrument, words: Any) -> None:
    """No head request is left open at the gateway."""

    async def ask(source: GatewaySource) -> None:
        with pytest.raises(GatewaySilentError):
            await source.head(aapl)
        await source.health()

    bench(ask, head=words.ignore)
    assert len(bench.gateway.asked(90)) == 1


def test_silence_about_a_contract_ends_at_the_deadline(
    bench: Any, aapl: Instrument, words: Any
) -> None:
    """Contract details have a deadline as everything has."""
    with pytest.raises(GatewaySilentError, match="contract of AAPL"):
        bench(lambda source: source.contract_id(aapl), contract=words.ignore)


def test_a_request_given_up_by_its_caller_is_cancelled(
    bench: Any, minute_request: BarRequest, words: Any
) -> None:
    """A cancelled task leaves nothing open at the gateway."""

    async def ask(source: GatewaySource) -> None:
        task = asyncio.create_task(source.bars(minute_request))
        await bench.gateway.until_asked(20)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await source.health()

    bench(ask, bars=words.ignore)
    assert len(bench.gateway.asked(25)) == 1


def test_bars_that_come_after_the_deadline_go_to_nobody(
    bench: Any, minute_request: BarRequest, words: Any
) -> None:
    """Late bars neither appear in the next answer nor hurt anything."""

    def late_then_good(talk: Any, fields: list[str]) -> None:
        if len(bench.gateway.asked(20)) == 1:
            late = words.history(fields[1], words.bar(words.first, close=99.0))
            talk.later(0.55, lambda: talk.raw(late))
        else:
            talk.later(0.1, lambda: words.tell_bars(talk, fields))

    async def ask(source: GatewaySource) -> Any:
        with pytest.raises(GatewaySilentError):
            await source.bars(minute_request)
        return await source.bars(minute_request)

    answer = bench(ask, bars=late_then_good)
    assert answer.bars["close"].to_pylist() == [10.5, 10.5]


def test_an_answer_for_an_unknown_request_is_dropped(
    bench: Any, minute_request: BarRequest, words: Any
) -> None:
    """Bars under a number that nobody asked with change nothing."""

    def with_stray(talk: Any, fields: list[str]) -> None:
        talk.raw(words.history(4711, words.bar(words.first, close=99.0)))
        words.tell_bars(talk, fields)

    answer = bench(lambda source: source.bars(minute_request), bars=with_stray)
    assert answer.bars["close"].to_pylist() == [10.5, 10.5]


def test_a_second_answer_to_one_request_is_dropped(
    bench: Any, minute_request: BarRequest, words: Any
) -> None:
    """The first whole answer counts."""

    def twice(talk: Any, fields: list[str]) -> None:
        words.tell_bars(talk, fields)
        talk.raw(words.history(fields[1], words.bar(words.first, close=99.0)))

    async def ask(source: GatewaySource) -> Any:
        answer = await source.bars(minute_request)
        await source.health()
        return answer

    assert bench(ask, bars=twice).bars["close"].to_pylist() == [10.5, 10.5]


def test_an_error_after_the_end_changes_nothing(
    bench: Any, minute_request: BarRequest, words: Any
) -> None:
    """What the gateway says of an answered request is only noted."""

    def late_error(talk: Any, fields: list[str]) -> None:
        words.tell_bars(talk, fields)
        talk.error(fields[1], 162, "API historical data query cancelled: 1")

    async def ask(source: GatewaySource) -> Any:
        answer = await source.bars(minute_request)
        return answer, await source.health()

    answer, health = bench(ask, bars=late_error)
    assert isinstance(answer, Answer)
    assert health.is_good


def test_an_error_before_the_end_wins(bench: Any, aapl: Instrument, words: Any) -> None:
    """Parts of an answer that an error follows settle nothing."""

    def parts_then_error(talk: Any, fields: list[str]) -> None:
        talk.send(*(text.format(id=fields[2]) for text in words.details))
        talk.error(fields[2], 162, f"{HMDS}Historical data request pacing violation")
        talk.send(52, 1, fields[2])

    with pytest.raises(PacingError):
        bench(lambda source: source.contract_id(aapl), contract=parts_then_error)


@pytest.mark.parametrize(
    ("case", "fields_after_id"),
    [
        ("fewer bars than said", ["", "", 2, *range(8)]),
        ("more bars than said", ["", "", 1, *range(16)]),
        ("a cut bar", ["", "", 1, 1_767_623_400, 10, 11]),
        ("no number of bars", ["", "", "", *range(8)]),
        ("a negative number of bars", ["", "", -1]),
        ("nothing but the id", []),
    ],
)
def test_an_answer_of_another_shape_is_bad(
    bench: Any, minute_request: BarRequest, words: Any, case: str, *, fields_after_id: list[Any]
) -> None:
    """An answer that does not hold what it says is an error, never a shorter answer."""
    with pytest.raises(BadAnswerError):
        bench(
            lambda source: source.bars(minute_request),
            bars=lambda talk, fields: talk.send(17, fields[1], *fields_after_id),
        )


@pytest.mark.parametrize(
    "bars",
    [
        [(1_767_623_400, "nan", 11, 9, 10, 1, 1, 1)],
        [(1_767_623_400, 10, "inf", 9, 10, 1, 1, 1)],
        [(1_767_623_400, 10, 11, "", 10, 1, 1, 1)],
        [(1_767_623_400, 10, 11, 9, "ten", 1, 1, 1)],
        [(1_767_623_400, 10, 11, 9, 10, "nan", 1, 1)],
        [(1_767_623_400, 10, 11, 9, 10, 1, 1, 1.5)],
        [(1_767_623_400, 10, 11, 9, 10, 1, 1, 3_000_000_000)],
        [(1_767_623_401, 10, 11, 9, 10, 1, 1, 1)],
        [("20260105", 10, 11, 9, 10, 1, 1, 1)],
        [("20260105 09:30:00", 10, 11, 9, 10, 1, 1, 1)],
        [(0, 10, 11, 9, 10, 1, 1, 1)],
        [("99999999999999999999999", 10, 11, 9, 10, 1, 1, 1)],
        [(1_767_623_400_000, 10, 11, 9, 10, 1, 1, 1)],
        [(1_767_623_400, 10, 11, 9, 10, 1, 1, 1), (1_767_623_400, 10, 11, 9, 10.5, 1, 1, 1)],
    ],
)
def test_a_bar_that_cannot_be_is_a_bad_answer(
    bench: Any, minute_request: BarRequest, words: Any, bars: Any
) -> None:
    """Impossible prices, counts and stamps, or two bars for one minute, settle nothing."""
    with pytest.raises(BadAnswerError, match="cannot be") as caught:
        bench(
            lambda source: source.bars(minute_request),
            bars=lambda talk, fields: talk.raw(words.history(fields[1], *bars)),
        )
    assert caught.value.retry


def test_bars_of_a_smaller_size_are_a_bad_answer(
    bench: Any, minute_request: BarRequest, words: Any
) -> None:
    """Minutes in place of hours, meant for another request, are no hours cut short."""
    request = replace(minute_request, series=Series(minute_request.series.instrument, Timeframe.H1))
    minutes = [words.bar(1_767_623_400 + 60 * place) for place in range(5)]
    with pytest.raises(BadAnswerError, match="sooner than 1h after another"):
        bench(
            lambda source: source.bars(request),
            bars=lambda talk, fields: talk.raw(words.history(fields[1], *minutes)),
        )


@pytest.mark.parametrize(("place", "other"), [(2, "MSFT"), (8, "MXN")])
def test_another_contract_is_a_bad_answer(
    bench: Any, aapl: Instrument, words: Any, *, place: int, other: str
) -> None:
    """Another symbol, or another currency, is not taken for what was asked for."""

    def tell(talk: Any, fields: list[str]) -> None:
        texts = [text.format(id=fields[2]) for text in words.details]
        texts[place] = other
        talk.send(*texts)
        talk.send(52, 1, fields[2])

    with pytest.raises(BadAnswerError, match=other):
        bench(lambda source: source.contract_id(aapl), contract=tell)


def test_a_pinned_contract_is_the_one_that_was_asked_for(
    bench: Any, aapl: Instrument, words: Any
) -> None:
    """Asked by its id, another id is refused, and the symbol does not matter."""
    pinned = replace(aapl, contract_id=4711)
    with pytest.raises(BadAnswerError, match="265598"):
        bench(lambda source: source.contract_id(pinned))
    renamed = replace(aapl, contract_id=265598, ib_symbol="APPLE")
    assert bench(lambda source: source.contract_id(renamed)) == 265598


@pytest.mark.parametrize("given", ["1767571200", "2026-01-05", "20261301", "", "2026010"])
def test_a_daily_bar_needs_a_date(
    bench: Any, aapl: Instrument, minute_request: BarRequest, words: Any, *, given: str
) -> None:
    """Anything but yyyymmdd is no date."""
    request = replace(minute_request, series=Series(aapl, Timeframe.D1))
    with pytest.raises(BadAnswerError):
        bench(
            lambda source: source.bars(request),
            bars=lambda talk, fields: talk.raw(words.history(fields[1], words.bar(given))),
        )


def test_an_answer_of_another_kind_is_bad(bench: Any, minute_request: BarRequest) -> None:
    """A head timestamp is no answer to a request for bars."""
    with pytest.raises(BadAnswerError, match="message 88"):
        bench(
            lambda source: source.bars(minute_request),
            bars=lambda talk, fields: talk.send(88, fields[1], 345479400),
        )


@pytest.mark.parametrize("text", ["yesterday", "19801212", "19801212 14:30:00 EST"])
def test_a_head_that_is_no_moment_is_bad(bench: Any, aapl: Instrument, text: str) -> None:
    """A head timestamp whose zone is unclear is refused rather than guessed."""
    with pytest.raises(BadAnswerError, match="head timestamp"):
        bench(
            lambda source: source.head(aapl),
            head=lambda talk, fields: talk.send(88, fields[1], text),
        )


def test_an_id_that_is_none_is_a_bad_answer(bench: Any, aapl: Instrument, words: Any) -> None:
    """Contract details without a positive id are refused."""

    def without_id(talk: Any, fields: list[str]) -> None:
        texts = [text.format(id=fields[2]) for text in words.details]
        texts[12] = "0"
        talk.send(*texts)
        talk.send(52, 1, fields[2])

    with pytest.raises(BadAnswerError, match="contract id 0"):
        bench(lambda source: source.contract_id(aapl), contract=without_id)


def test_an_end_inside_an_answer_is_a_lost_connection(
    bench: Any, minute_request: BarRequest, words: Any
) -> None:
    """Half a frame and then nothing more fails the request at once."""

    def half(talk: Any, fields: list[str]) -> None:
        talk.raw(words.history(fields[1], words.bar(words.first))[:30])
        talk.close()

    with pytest.raises(ConnectionLostError, match="closed the connection"):
        bench(lambda source: source.bars(minute_request), bars=half)


def test_a_lost_connection_fails_every_open_request_at_once(
    bench: Any, minute_request: BarRequest, words: Any
) -> None:
    """Nobody waits for the deadline when the socket is gone."""

    def close_at_third(talk: Any, fields: list[str]) -> None:
        if len(bench.gateway.asked(20)) == 3:
            talk.close()

    async def ask(source: GatewaySource) -> Any:
        requests = [replace(minute_request, duration=f"{days} D") for days in (1, 2, 3)]
        async with asyncio.timeout(0.4):
            return await asyncio.gather(
                *(source.bars(request) for request in requests), return_exceptions=True
            )

    errors = bench(ask, bars=close_at_third)
    assert [type(error) for error in errors] == [ConnectionLostError] * 3
    assert len({str(error) for error in errors}) == 3


def test_a_request_on_a_lost_connection_fails_at_once(
    bench: Any, minute_request: BarRequest
) -> None:
    """What is asked after the end does not wait either."""

    async def ask(source: GatewaySource) -> None:
        with pytest.raises(ConnectionLostError):
            await source.bars(minute_request)
        async with asyncio.timeout(0.1):
            await source.bars(minute_request)

    with pytest.raises(ConnectionLostError, match="is gone"):
        bench(ask, bars=lambda talk, _: talk.close())


@pytest.mark.parametrize(
    "data",
    [
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        b"\xff\xff\xff\xff",
        b"\x00\x00\x00\x00",
        b"\x00\x00\x00\x06hello\x00",
        b"\x00\x00\x00\x03\xff\xfe\x00",
    ],
)
def test_garbage_ends_the_connection(bench: Any, minute_request: BarRequest, data: Any) -> None:
    """A stream that cannot be read is given up at once, with a typed error."""

    async def ask(source: GatewaySource) -> None:
        async with asyncio.timeout(0.4):
            await source.bars(minute_request)

    with pytest.raises(ConnectionLostError, match="does not speak"):
        bench(ask, bars=lambda talk, _: talk.raw(data))


@pytest.mark.parametrize("told", [0, -5, 1_767_623_400_000, 10**30])
def test_a_clock_that_cannot_be_is_no_gateways(bench: Any, told: int) -> None:
    """Milliseconds or nonsense for the time end the connecting, and no later sum goes wrong."""
    with pytest.raises(GatewayUnreachableError, match="does not speak"):
        bench(lambda source: source.health(), time=lambda talk, _: talk.send(49, 1, told))


def test_frames_that_nobody_asked_for_are_ignored(
    bench: Any, minute_request: BarRequest, words: Any
) -> None:
    """Orders, accounts and new kinds of messages of the gateway change nothing."""

    def chatty(talk: Any, fields: list[str]) -> None:
        talk.send(5, 1, "an open order that nobody asked for")
        talk.send(6, 2, "NetLiquidation", "1000", "USD", "DU1234567")
        talk.send(999, "a message of a later version")
        words.tell_bars(talk, fields)

    assert bench(lambda source: source.bars(minute_request), bars=chatty).bars.num_rows == 2


def test_a_slow_trickle_is_put_together(bench: Any, minute_request: BarRequest, words: Any) -> None:
    """An answer that comes byte by byte is the same answer."""

    def trickle(talk: Any, fields: list[str]) -> None:
        data = words.history(fields[1], words.bar(words.first), words.bar(words.first + 60))
        for place in range(len(data)):
            talk.later(place * 0.001, lambda place=place: talk.raw(data[place : place + 1]))

    assert bench(lambda source: source.bars(minute_request), bars=trickle).bars.num_rows == 2


def test_a_trickle_without_end_ends_at_the_deadline(
    bench: Any, minute_request: BarRequest, words: Any
) -> None:
    """Bytes that keep coming do not move the deadline."""

    def endless(talk: Any, fields: list[str]) -> None:
        data = words.history(fields[1], *[words.bar(words.first)] * 1000)
        for place in range(400):
            talk.later(place * 0.01, lambda place=place: talk.raw(data[place : place + 1]))

    with pytest.raises(GatewaySilentError):
        bench(lambda source: source.bars(minute_request), bars=endless)


def test_requests_wait_while_the_link_is_lost(
    bench: Any, minute_request: BarRequest, words: Any
) -> None:
    """Nothing is sent between 1100 and 1101; then it goes on."""

    def lose_once(talk: Any, fields: list[str]) -> None:
        words.tell_time(talk, fields)
        talk.error(-1, 1100, "Connectivity between IBKR and Trader Workstation has been lost.")
        talk.later(0.1, lambda: talk.error(-1, 1101, "Connectivity restored - data lost."))

    async def ask(source: GatewaySource) -> Any:
        await asyncio.sleep(0.02)
        before = len(bench.gateway.asked(9))
        answer = await source.bars(minute_request)
        return before, answer

    before, answer = bench(ask, time=lose_once)
    assert before == 0
    assert answer.bars.num_rows == 2


def test_a_link_that_stays_lost_ends_at_the_deadline(
    bench: Any, minute_request: BarRequest, words: Any
) -> None:
    """What waits for the link says so when it gives up."""

    def lose(talk: Any, fields: list[str]) -> None:
        words.tell_time(talk, fields)
        talk.error(-1, 1100, "Connectivity between IBKR and Trader Workstation has been lost.")

    async def ask(source: GatewaySource) -> None:
        await asyncio.sleep(0.02)
        await source.bars(minute_request)

    with pytest.raises(OutageError, match="1100 Connectivity"):
        bench(ask, time=lose)


def test_a_broken_farm_explains_the_silence(bench: Any, minute_request: BarRequest) -> None:
    """A request that times out while the data farm is broken says so; health does too."""

    def broken(talk: Any, fields: list[str]) -> None:
        talk.error(-1, 2105, "HMDS data farm connection is broken:ushmds")

    async def ask(source: GatewaySource) -> Any:
        with pytest.raises(OutageError, match="2105 HMDS data farm connection is broken"):
            await source.bars(minute_request)
        return await source.health()

    assert bench(ask, bars=broken).troubles == ("2105 HMDS data farm connection is broken:ushmds",)


def test_a_mended_farm_is_forgotten(bench: Any, words: Any) -> None:
    """2106 for the same farm ends the trouble."""

    def start(talk: Any, fields: list[str]) -> None:
        words.start(talk, fields)
        talk.error(-1, 2105, "HMDS data farm connection is broken:ushmds")
        talk.error(-1, 2106, "HMDS data farm connection is OK:ushmds")

    assert bench(lambda source: source.health(), start=start).is_good


@pytest.mark.parametrize(
    ("code", "text"),
    [
        (2188, "Up-to-the-second historical data requires additional subscription for the API."),
        (2174, "Warning: You submitted request with date-time without explicit time zone."),
        (10167, "Requested market data is not subscribed. Displaying delayed market data."),
    ],
)
def test_a_notice_about_a_request_leaves_its_bars(
    bench: Any,
    minute_request: BarRequest,
    words: Any,
    caplog: pytest.LogCaptureFixture,
    *,
    code: int,
    text: str,
) -> None:
    """The bars follow a notice, and the notice is logged with what it concerns."""
    caplog.set_level(logging.INFO)

    def noting(talk: Any, fields: list[str]) -> None:
        talk.error(fields[1], code, text)
        words.tell_bars(talk, fields)

    assert bench(lambda source: source.bars(minute_request), bars=noting).bars.num_rows == 2
    assert f"AAPL 1m, 1 D to now: the gateway notes {code} {text}" in caplog.text


def test_1300_fails_what_is_open(bench: Any, minute_request: BarRequest) -> None:
    """A gateway that drops the connection says so before it does."""

    def dropping(talk: Any, fields: list[str]) -> None:
        talk.error(-1, 1300, "TWS socket port has been reset and this connection is being dropped.")

    with pytest.raises(ConnectionLostError, match="1300"):
        bench(lambda source: source.bars(minute_request), bars=dropping)


def test_health_without_an_answer_is_a_value(bench: Any, words: Any) -> None:
    """A gateway that stops answering is reported, not raised."""

    def once(talk: Any, fields: list[str]) -> None:
        if len(bench.gateway.asked(49)) == 1:
            words.tell_time(talk, fields)

    health = bench(lambda source: source.health(), time=once)
    assert health.connected
    assert health.round_trip_s is None
    assert health.last_answer_age_s is None
    assert not health.is_good
