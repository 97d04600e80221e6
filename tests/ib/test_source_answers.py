"""The source's values for valid responses, and the requests that it sends."""

import asyncio
import time
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from typing import Any

import pyarrow as pa
import pytest

from ktrdr_pipelines.clock import boot_time_s
from ktrdr_pipelines.domain.bars import BAR_SCHEMA, micros, timestamps
from ktrdr_pipelines.domain.instruments import Instrument, Origin, Series
from ktrdr_pipelines.domain.intervals import Interval
from ktrdr_pipelines.domain.planning.responses import BarRequest, NoData, Response
from ktrdr_pipelines.domain.timeframes import Timeframe
from ktrdr_pipelines.errors import (
    ContractAmbiguousError,
    ContractUnknownError,
    RequestExpiredError,
)
from ktrdr_pipelines.ib.pacing.circuit_breaker import BreakerState
from ktrdr_pipelines.ib.source import GatewaySource


def test_bars_become_a_table_of_the_schema(
    harness: Any, minute_request: BarRequest, replies: Any
) -> None:
    """Two minute bars become two rows of the schema, with the timestamps of their epochs."""
    answer = harness(lambda source: source.bars(minute_request))
    assert isinstance(answer, Response)
    assert answer.bars.schema == BAR_SCHEMA
    assert answer.bars.to_pylist()[0] == {
        "ts": datetime(2026, 1, 5, 14, 30, tzinfo=UTC),
        "session_date": date(2026, 1, 5),
        "open": 10.0,
        "high": 11.0,
        "low": 9.0,
        "close": 10.5,
        "volume": 100.0,
        "average": 10.25,
        "bar_count": 7,
    }


def test_the_fields_of_a_request_are_unambiguous(harness: Any, minute_request: BarRequest) -> None:
    """The end is in UTC with a dash, dates are epochs, and the contract is an id."""
    ends_at = datetime(2026, 1, 5, 16, tzinfo=UTC)
    request = replace(minute_request, ends_at=ends_at)
    harness(lambda source: source.bars(request))
    sent = harness.gateway.frames(20)[0]
    assert sent[2] == "265598"
    assert sent[15:21] == ["20260105-16:00:00", "1 min", "1 D", "1", "TRADES", "2"]
    assert sent[21] == "0"


def test_now_is_an_empty_end(harness: Any, minute_request: BarRequest) -> None:
    """A request without an end has an empty one."""
    harness(lambda source: source.bars(minute_request))
    assert harness.gateway.frames(20)[0][15] == ""


def test_a_request_whose_now_has_passed_is_not_sent(
    harness: Any, minute_request: BarRequest
) -> None:
    """Its permit is returned, and the next request is sent at once."""

    async def ask(source: GatewaySource) -> None:
        late = replace(minute_request, not_after=source.now())
        with pytest.raises(RequestExpiredError):
            await source.bars(late)
        assert harness.gateway.frames(20) == []
        await source.bars(replace(late, not_after=source.now() + timedelta(minutes=1)))

    harness(ask)
    assert [sent[15] for sent in harness.gateway.frames(20)] == [""]


def test_responses_tell_how_many_requests_were_in_flight(
    harness: Any, minute_request: BarRequest, replies: Any
) -> None:
    """The gateway responds to two requests once it has both."""
    received: list[tuple[Any, list[str]]] = []

    def respond(client: Any, fields: list[str]) -> None:
        received.append((client, fields))
        for one in received if len(received) == 2 else ():
            replies.send_bars(*one)

    async def ask(source: GatewaySource) -> list[int]:
        end = datetime(2026, 1, 5, 16, tzinfo=UTC)
        requests = [replace(minute_request, ends_at=end + timedelta(hours=n)) for n in range(2)]
        found = await asyncio.gather(*(source.bars(one) for one in requests))
        return [one.at_once for one in found if isinstance(one, Response)]

    assert harness(ask, bars=respond) == [1, 2]


def test_values_that_are_not_available_are_null(response_of: Any, replies: Any) -> None:
    """-1 for volume, average and count is null, not zero."""
    bars = [
        replies.bar(replies.first, volume=-1, average=-1, count=-1),
        replies.bar(replies.first + 60),
    ]
    answer = response_of(*bars)
    assert answer.bars["volume"].to_pylist() == [None, 100.0]
    assert answer.bars["average"].to_pylist() == [None, 10.25]
    assert answer.bars["bar_count"].to_pylist() == [None, 7]


@pytest.mark.parametrize(
    "unset", ["", "2147483647", "9223372036854775807", "1.7976931348623157E308", str(2**127 - 1)]
)
def test_values_that_are_unset_are_null(response_of: Any, replies: Any, unset: str) -> None:
    """The protocol's values for "not set" are null, as in the official client."""
    row = replies.bar(replies.first, volume=unset, average=unset, count=unset)
    answer = response_of(row)
    assert [answer.bars[name].to_pylist() for name in ("volume", "average", "bar_count")] == [
        [None]
    ] * 3
    assert answer.bars["close"].to_pylist() == [10.5]


def test_an_average_below_zero_is_kept(response_of: Any, replies: Any) -> None:
    """Negative prices, such as crude oil's in April 2020, have a negative average."""
    prices = (-37.5, -36.0, -40.0, -37.0)
    row = (replies.first, *prices, 100, -37.63, 7)
    answer = response_of(row)
    assert answer.bars["average"].to_pylist() == [-37.63]
    assert answer.bars["low"].to_pylist() == [-40.0]


def test_java_notation_of_large_volumes_is_read(response_of: Any, replies: Any) -> None:
    """A volume in scientific notation is a number."""
    answer = response_of(replies.bar(replies.first, volume="1.2345678E7"))
    assert answer.bars["volume"].to_pylist() == [12_345_678.0]


def test_daily_bars_stand_at_midnight_of_their_date(
    response_of: Any, aapl: Instrument, minute_request: BarRequest, replies: Any
) -> None:
    """A daily bar keeps its date; its timestamp is midnight UTC."""
    request = replace(minute_request, series=Series(aapl, Timeframe.D1), duration="2 D")
    answer = response_of(replies.bar("20260105"), replies.bar("20260106"), request=request)
    assert answer.bars["session_date"].to_pylist() == [date(2026, 1, 5), date(2026, 1, 6)]
    assert timestamps(answer.bars)[0] == micros(datetime(2026, 1, 5, tzinfo=UTC))


@pytest.mark.parametrize("given", ["20260102", "20260101", "20251229"])
def test_weekly_bars_stand_at_their_monday(
    response_of: Any, aapl: Instrument, minute_request: BarRequest, replies: Any, *, given: str
) -> None:
    """Whichever session dates a week, its timestamp is Monday, and the date is kept."""
    request = replace(minute_request, series=Series(aapl, Timeframe.W1), duration="1 W")
    answer = response_of(replies.bar(given), request=request)
    assert timestamps(answer.bars).tolist() == [micros(datetime(2025, 12, 29, tzinfo=UTC))]
    assert answer.bars["session_date"].to_pylist()[0].strftime("%Y%m%d") == given


def test_unordered_bars_are_sorted(response_of: Any, replies: Any) -> None:
    """The order of the rows does not matter."""
    order = [120, 0, 60]
    answer = response_of(*(replies.bar(replies.first + s, close=10 + s) for s in order))
    assert answer.bars["close"].to_pylist() == [10.0, 70.0, 130.0]


def test_exact_duplicates_are_one_bar(response_of: Any, replies: Any) -> None:
    """The same bar twice is one bar."""
    answer = response_of(replies.bar(replies.first), replies.bar(replies.first))
    assert answer.bars.num_rows == 1


def test_equal_values_at_two_timestamps_are_two_bars(
    harness: Any, minute_request: BarRequest
) -> None:
    """Only the timestamp identifies a bar."""
    answer = harness(lambda source: source.bars(minute_request))
    assert answer.bars.num_rows == 2
    assert len(set(answer.bars["close"].to_pylist())) == 1


def test_the_stated_range_is_kept(response_of: Any, replies: Any) -> None:
    """The range that message 17 states is part of the response."""
    reach = ("20260104-16:00:00", "20260105-16:00:00")
    answer = response_of(replies.bar(replies.first), reach=reach)
    end = datetime(2026, 1, 5, 16, tzinfo=UTC)
    assert answer.reach == Interval(end - timedelta(days=1), end)


def test_no_data_is_a_value(harness: Any, minute_request: BarRequest) -> None:
    """A statement of no data is not an error."""
    text = "Historical Market Data Service error message:HMDS query returned no data: AAPL@SMART"
    answer = harness(
        lambda source: source.bars(minute_request),
        bars=lambda client, fields: client.error(fields[1], 162, text),
    )
    assert isinstance(answer, NoData)
    assert "returned no data" in answer.message


def test_a_response_of_zero_bars_is_no_data(response_of: Any) -> None:
    """Zero bars in message 17 differ from the gateway's text of no data."""
    answer = response_of()
    assert isinstance(answer, NoData)
    assert answer.message == "the gateway answered with 0 bars"


def test_a_contract_is_requested_once_per_connection(
    harness: Any, aapl: Instrument, minute_request: BarRequest
) -> None:
    """Concurrent requests for one instrument request its contract once."""

    async def ask(source: GatewaySource) -> Any:
        other = replace(minute_request, duration="2 D")
        await asyncio.gather(
            source.contract_id(aapl), source.bars(minute_request), source.bars(other)
        )
        return await source.contract_id(aapl)

    assert harness(ask) == 265598
    assert len(harness.gateway.frames(9)) == 1


def test_the_head_is_read_and_its_request_cancelled(harness: Any, aapl: Instrument) -> None:
    """The head timestamp is in UTC, and the request is cancelled to free its slot."""

    async def ask(source: GatewaySource) -> Any:
        head = await source.head(aapl)
        await source.health()
        return head

    assert harness(ask) == datetime(1980, 12, 12, 14, 30, tzinfo=UTC)
    assert [fields[1] for fields in harness.gateway.frames(90)] == [
        harness.gateway.frames(87)[0][1]
    ]


@pytest.mark.parametrize(
    "text", ["No head time stamp", "No historical market data for AAPL/STK@SMART Last 1d", "other"]
)
def test_a_head_that_the_gateway_does_not_know_is_none(
    harness: Any, aapl: Instrument, text: str
) -> None:
    """A 162 other than permission or pacing means that there is no head."""
    message = f"Historical Market Data Service error message:{text}"

    async def ask(source: GatewaySource) -> Any:
        head = await source.head(aapl)
        await source.health()
        return head

    assert harness(ask, head=lambda client, fields: client.error(fields[1], 162, message)) is None
    assert [fields[1] for fields in harness.gateway.frames(90)] == [
        harness.gateway.frames(87)[0][1]
    ]


def test_an_unknown_contract_names_the_fields_of_the_universe(
    harness: Any, aapl: Instrument
) -> None:
    """The hint of code 200 names the fields to check."""
    with pytest.raises(ContractUnknownError, match="primary_exchange") as caught:
        harness(
            lambda source: source.contract_id(aapl),
            contract=lambda client, fields: client.error(
                fields[2], 200, "No security definition has been found for the request"
            ),
        )
    assert caught.value.code == 200
    assert not caught.value.retry


def test_no_details_at_all_are_an_unknown_contract(harness: Any, aapl: Instrument) -> None:
    """An end message without details means that there is no such contract."""
    with pytest.raises(ContractUnknownError, match="knows no such contract"):
        harness(
            lambda source: source.contract_id(aapl),
            contract=lambda client, fields: client.send(52, 1, fields[2]),
        )


def test_several_contracts_are_listed_with_the_field_that_picks_one(
    harness: Any, aapl: Instrument, replies: Any
) -> None:
    """Candidates with different primary exchanges: the hint names that field."""

    def several(client: Any, fields: list[str]) -> None:
        for number, exchange in (("265598", "NASDAQ"), ("38708077", "MEXI")):
            texts = [text.format(id=fields[2]) for text in replies.details]
            texts[12], texts[20] = number, exchange
            assert replies.details[20] == "NASDAQ"
            client.send(*texts)
        client.send(52, 1, fields[2])

    with pytest.raises(ContractAmbiguousError) as caught:
        harness(lambda source: source.contract_id(aapl), contract=several)
    text = str(caught.value)
    assert "id 265598" in text
    assert "id 38708077" in text
    assert "Set primary_exchange (or con_id) in the universe: MEXI or NASDAQ" in text


def test_one_contract_listed_twice_is_one(harness: Any, aapl: Instrument, replies: Any) -> None:
    """The same contract on two exchanges is not ambiguous."""

    def twice(client: Any, fields: list[str]) -> None:
        for _ in range(2):
            client.send(*(text.format(id=fields[2]) for text in replies.details))
        client.send(52, 1, fields[2])

    assert harness(lambda source: source.contract_id(aapl), contract=twice) == 265598


@pytest.mark.parametrize(
    ("account", "origin"), [("DU" + "1234567", Origin.IB), ("SIM000001", Origin.SIMULATED)]
)
def test_the_account_decides_the_origin(harness: Any, account: str, origin: Origin) -> None:
    """An account with the prefix SIM is of a simulated gateway."""

    async def ask(source: GatewaySource) -> Any:
        return source.origin

    assert harness(ask, account=account) is origin


def test_the_account_is_never_shown(harness: Any, caplog: pytest.LogCaptureFixture) -> None:
    """Neither the login's name, texts nor debug logs hold it."""
    caplog.set_level("DEBUG")

    async def ask(source: GatewaySource) -> Any:
        return f"{source.login}, {source!r}, {await source.health()}"

    account = "U" + "7654321"
    shown = harness(ask, account=account)
    assert shown.startswith("login 1, ")
    assert account[1:] not in shown + caplog.text


def test_logins_have_different_names(harness: Any) -> None:
    """A login keeps its name, whatever the order of its accounts."""

    async def ask(source: GatewaySource) -> Any:
        return source.login

    names = [harness(ask, account=account) for account in ("U1,U2", "U3", "U2,U1,")]
    assert names == ["login 1", "login 2", "login 1"]


def test_now_is_the_gateways_clock(harness: Any) -> None:
    """The offset of a gateway that is minutes ahead is measured."""

    async def ask(source: GatewaySource) -> Any:
        return source.now() - datetime.now(UTC), (await source.health()).clock_offset_s

    ahead, offset_s = harness(ask, clock_offset_s=300)
    assert timedelta(seconds=240) < ahead < timedelta(seconds=301)
    assert 240 < offset_s < 301


def test_bars_survive_the_connection(harness: Any, minute_request: BarRequest) -> None:
    """The table is valid after the gateway is gone."""
    answer = harness(lambda source: source.bars(minute_request))
    assert pa.Table.from_pylist(answer.bars.to_pylist(), schema=BAR_SCHEMA).equals(answer.bars)


def test_health_combines_the_connection_and_the_shared_record(
    harness: Any, aapl: Instrument, minute_request: BarRequest
) -> None:
    """Only data responses have an age; breaker and concurrency are those of all processes."""

    async def ask(source: GatewaySource) -> Any:
        begun_s, states = boot_time_s(), [await source.health()]
        await source.contract_id(aapl)
        states.append(await source.health())
        await source.bars(minute_request)
        return *states, await source.health(), boot_time_s() - begun_s

    before, after_contract, after_bars, took_s = harness(ask)
    assert before.last_answer_age_s is None
    assert 0 < before.round_trip_s <= took_s
    for state in (after_contract, after_bars):
        assert 0 <= state.last_answer_age_s <= took_s
        assert state.is_good
        assert (state.breaker, state.concurrency) == (BreakerState.CLOSED, 6)


def test_contracts_of_older_versions_are_read(harness: Any, aapl: Instrument, replies: Any) -> None:
    """Below version 164 details have a version at their start and one number more."""

    def older(client: Any, fields: list[str]) -> None:
        texts = [text.format(id=fields[2]) for text in replies.details]
        client.send(texts[0], 8, *texts[1:14], 100, *texts[14:-3])
        client.send(52, 1, fields[2])

    assert harness(lambda source: source.contract_id(aapl), contract=older, version=163) == 265598


def test_responses_that_arrive_together_or_in_pieces_are_each_read(
    harness: Any, minute_request: BarRequest, replies: Any
) -> None:
    """Bars, times and notices of several requests in one write, which ends inside a frame."""
    waiting: list[str] = []

    def together(client: Any, fields: list[str]) -> None:
        waiting.append(fields[1])
        if len(waiting) < 3:
            return
        data = b""
        for place, number in enumerate(reversed(waiting)):
            client.send(49, 1, int(time.time()))
            client.error(-1, 2106, "HMDS data farm connection is OK:ushmds")
            rows = [replies.bar(replies.first + 60 * one, close=place) for one in range(2000)]
            data += replies.history(number, *rows)
        client.raw(data[:50_001])
        client.later(0.01, lambda: client.raw(data[50_001:]))

    async def ask(source: GatewaySource) -> Any:
        requests = [replace(minute_request, duration=f"{days} D") for days in (1, 2, 3)]
        return await asyncio.gather(*map(source.bars, requests))

    found = harness(ask, bars=together)
    assert [one.bars.num_rows for one in found] == [2000] * 3
    assert [set(one.bars["close"].to_pylist()) for one in found] == [{2.0}, {1.0}, {0.0}]
