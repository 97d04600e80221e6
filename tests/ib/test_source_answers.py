"""What the source makes of good answers, and what it sends for them."""

import asyncio
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
from ktrdr_pipelines.ib.source import GatewaySource


def test_bars_come_as_a_table_of_the_project(
    bench: Any, minute_request: BarRequest, words: Any
) -> None:
    """Two minute bars become two rows of the schema, stamped by their epochs."""
    answer = bench(lambda source: source.bars(minute_request))
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


def test_a_request_says_what_it_wants_without_ambiguity(
    bench: Any, minute_request: BarRequest
) -> None:
    """Ends are told in UTC with a dash, dates are asked for as epochs, contracts by their id."""
    ends_at = datetime(2026, 1, 5, 16, tzinfo=UTC)
    request = replace(minute_request, ends_at=ends_at)
    bench(lambda source: source.bars(request))
    sent = bench.gateway.what(20)[0]
    assert sent[2] == "265598"
    assert sent[15:21] == ["20260105-16:00:00", "1 min", "1 D", "1", "TRADES", "2"]
    assert sent[21] == "0"


def test_now_is_asked_with_an_empty_end(bench: Any, minute_request: BarRequest) -> None:
    """No end means now."""
    bench(lambda source: source.bars(minute_request))
    assert bench.gateway.what(20)[0][15] == ""


def test_a_request_whose_now_has_passed_is_not_sent(bench: Any, minute_request: BarRequest) -> None:
    """What would mean another time by its turn is given back, and the next one goes out at once."""

    async def ask(source: GatewaySource) -> None:
        late = replace(minute_request, not_after=source.now())
        with pytest.raises(RequestExpiredError):
            await source.bars(late)
        assert bench.gateway.what(20) == []
        await source.bars(replace(late, not_after=source.now() + timedelta(minutes=1)))

    bench(ask)
    assert [sent[15] for sent in bench.gateway.what(20)] == [""]


def test_values_that_are_not_available_are_null(
    bench: Any, minute_request: BarRequest, words: Any
) -> None:
    """Minus one for volume, average and count is null, never zero."""
    bars = [words.bar(words.first, volume=-1, average=-1, count=-1), words.bar(words.first + 60)]
    answer = bench(
        lambda source: source.bars(minute_request),
        bars=lambda talk, fields: talk.raw(words.history(fields[1], *bars)),
    )
    assert answer.bars["volume"].to_pylist() == [None, 100.0]
    assert answer.bars["average"].to_pylist() == [None, 10.25]
    assert answer.bars["bar_count"].to_pylist() == [None, 7]


@pytest.mark.parametrize(
    "unset", ["", "2147483647", "9223372036854775807", "1.7976931348623157E308", str(2**127 - 1)]
)
def test_values_that_are_unset_are_null(
    bench: Any, minute_request: BarRequest, words: Any, unset: str
) -> None:
    """What the wire has for "not set" is null too, as the official client reads it."""
    row = words.bar(words.first, volume=unset, average=unset, count=unset)
    answer = bench(
        lambda source: source.bars(minute_request),
        bars=lambda talk, fields: talk.raw(words.history(fields[1], row)),
    )
    assert [answer.bars[name].to_pylist() for name in ("volume", "average", "bar_count")] == [
        [None]
    ] * 3
    assert answer.bars["close"].to_pylist() == [10.5]


def test_an_average_below_zero_is_kept(bench: Any, minute_request: BarRequest, words: Any) -> None:
    """Where prices are negative, as crude oil's were in April 2020, their average is too."""
    prices = (-37.5, -36.0, -40.0, -37.0)
    row = (words.first, *prices, 100, -37.63, 7)
    answer = bench(
        lambda source: source.bars(minute_request),
        bars=lambda talk, fields: talk.raw(words.history(fields[1], row)),
    )
    assert answer.bars["average"].to_pylist() == [-37.63]
    assert answer.bars["low"].to_pylist() == [-40.0]


def test_java_notation_of_large_volumes_is_read(
    bench: Any, minute_request: BarRequest, words: Any
) -> None:
    """A volume in scientific notation is a number."""
    answer = bench(
        lambda source: source.bars(minute_request),
        bars=lambda talk, fields: talk.raw(
            words.history(fields[1], words.bar(words.first, volume="1.2345678E7"))
        ),
    )
    assert answer.bars["volume"].to_pylist() == [12_345_678.0]


def test_daily_bars_stand_at_midnight_of_their_date(
    bench: Any, aapl: Instrument, minute_request: BarRequest, words: Any
) -> None:
    """A daily bar keeps its date and is stamped at midnight UTC."""
    request = replace(minute_request, series=Series(aapl, Timeframe.D1), duration="2 D")
    answer = bench(
        lambda source: source.bars(request),
        bars=lambda talk, fields: talk.raw(
            words.history(fields[1], words.bar("20260105"), words.bar("20260106"))
        ),
    )
    assert answer.bars["session_date"].to_pylist() == [date(2026, 1, 5), date(2026, 1, 6)]
    assert timestamps(answer.bars)[0] == micros(datetime(2026, 1, 5, tzinfo=UTC))


@pytest.mark.parametrize("given", ["20260102", "20260101", "20251229"])
def test_weekly_bars_stand_at_their_monday(
    bench: Any, aapl: Instrument, minute_request: BarRequest, words: Any, *, given: str
) -> None:
    """Whatever session a week is dated by, it stands at its Monday and keeps the date given."""
    request = replace(minute_request, series=Series(aapl, Timeframe.W1), duration="1 W")
    answer = bench(
        lambda source: source.bars(request),
        bars=lambda talk, fields: talk.raw(words.history(fields[1], words.bar(given))),
    )
    assert timestamps(answer.bars).tolist() == [micros(datetime(2025, 12, 29, tzinfo=UTC))]
    assert answer.bars["session_date"].to_pylist()[0].strftime("%Y%m%d") == given


def test_unordered_bars_are_sorted(bench: Any, minute_request: BarRequest, words: Any) -> None:
    """The order on the wire does not matter."""
    order = [120, 0, 60]
    answer = bench(
        lambda source: source.bars(minute_request),
        bars=lambda talk, fields: talk.raw(
            words.history(fields[1], *(words.bar(words.first + s, close=10 + s) for s in order))
        ),
    )
    assert answer.bars["close"].to_pylist() == [10.0, 70.0, 130.0]


def test_exact_duplicates_are_one_bar(bench: Any, minute_request: BarRequest, words: Any) -> None:
    """The same bar twice is one bar."""
    answer = bench(
        lambda source: source.bars(minute_request),
        bars=lambda talk, fields: talk.raw(
            words.history(fields[1], words.bar(words.first), words.bar(words.first))
        ),
    )
    assert answer.bars.num_rows == 1


def test_equal_values_at_two_timestamps_are_two_bars(
    bench: Any, minute_request: BarRequest
) -> None:
    """Bars are told apart by their stamp alone."""
    answer = bench(lambda source: source.bars(minute_request))
    assert answer.bars.num_rows == 2
    assert len(set(answer.bars["close"].to_pylist())) == 1


def test_the_reach_of_an_answer_is_kept(bench: Any, minute_request: BarRequest, words: Any) -> None:
    """What message 17 says it covers comes with the bars."""
    reach = ("20260104-16:00:00", "20260105-16:00:00")
    answer = bench(
        lambda source: source.bars(minute_request),
        bars=lambda talk, fields: talk.raw(
            words.history(fields[1], words.bar(words.first), reach=reach)
        ),
    )
    end = datetime(2026, 1, 5, 16, tzinfo=UTC)
    assert answer.reach == Interval(end - timedelta(days=1), end)


def test_no_data_is_a_value(bench: Any, minute_request: BarRequest) -> None:
    """A gateway that says it has nothing raises nothing."""
    text = "Historical Market Data Service error message:HMDS query returned no data: AAPL@SMART"
    answer = bench(
        lambda source: source.bars(minute_request),
        bars=lambda talk, fields: talk.error(fields[1], 162, text),
    )
    assert isinstance(answer, NoData)
    assert "returned no data" in answer.message


def test_an_answer_of_no_bars_is_no_data_and_says_so(
    bench: Any, minute_request: BarRequest, words: Any
) -> None:
    """Zero bars in message 17 are told apart from the gateway's own words for no data."""
    answer = bench(
        lambda source: source.bars(minute_request),
        bars=lambda talk, fields: talk.raw(words.history(fields[1])),
    )
    assert isinstance(answer, NoData)
    assert answer.message == "the gateway answered with 0 bars"


def test_a_contract_is_asked_for_once_per_connection(
    bench: Any, aapl: Instrument, minute_request: BarRequest
) -> None:
    """Many requests at once for one instrument ask for its contract once."""

    async def ask(source: GatewaySource) -> Any:
        other = replace(minute_request, duration="2 D")
        await asyncio.gather(
            source.contract_id(aapl), source.bars(minute_request), source.bars(other)
        )
        return await source.contract_id(aapl)

    assert bench(ask) == 265598
    assert len(bench.gateway.what(9)) == 1


def test_the_head_is_read_and_its_request_cancelled(bench: Any, aapl: Instrument) -> None:
    """A head timestamp comes as UTC, and its place at the gateway is given back."""

    async def ask(source: GatewaySource) -> Any:
        head = await source.head(aapl)
        await source.health()
        return head

    assert bench(ask) == datetime(1980, 12, 12, 14, 30, tzinfo=UTC)
    assert [fields[1] for fields in bench.gateway.what(90)] == [bench.gateway.what(87)[0][1]]


@pytest.mark.parametrize(
    "text", ["No head time stamp", "No historical market data for AAPL/STK@SMART Last 1d", "other"]
)
def test_a_head_that_the_gateway_cannot_say_is_none(
    bench: Any, aapl: Instrument, text: str
) -> None:
    """Any 162 but of permission or pacing means that there is none; its place is given back."""
    message = f"Historical Market Data Service error message:{text}"

    async def ask(source: GatewaySource) -> Any:
        head = await source.head(aapl)
        await source.health()
        return head

    assert bench(ask, head=lambda talk, fields: talk.error(fields[1], 162, message)) is None
    assert [fields[1] for fields in bench.gateway.what(90)] == [bench.gateway.what(87)[0][1]]


def test_an_unknown_contract_names_the_fields_of_the_universe(bench: Any, aapl: Instrument) -> None:
    """Code 200 says what to look at."""
    with pytest.raises(ContractUnknownError, match="primary_exchange") as caught:
        bench(
            lambda source: source.contract_id(aapl),
            contract=lambda talk, fields: talk.error(
                fields[2], 200, "No security definition has been found for the request"
            ),
        )
    assert caught.value.code == 200
    assert not caught.value.retry


def test_no_details_at_all_are_an_unknown_contract(bench: Any, aapl: Instrument) -> None:
    """An end without a beginning means that there is no such contract."""
    with pytest.raises(ContractUnknownError, match="knows no such contract"):
        bench(
            lambda source: source.contract_id(aapl),
            contract=lambda talk, fields: talk.send(52, 1, fields[2]),
        )


def test_several_contracts_are_listed_with_the_field_that_picks_one(
    bench: Any, aapl: Instrument, words: Any
) -> None:
    """Candidates that differ in their primary exchange ask for that field."""

    def several(talk: Any, fields: list[str]) -> None:
        for number, entry in (("265598", "NASDAQ"), ("38708077", "MEXI")):
            texts = [text.format(id=fields[2]) for text in words.details]
            texts[12], texts[20] = number, entry
            assert words.details[20] == "NASDAQ"
            talk.send(*texts)
        talk.send(52, 1, fields[2])

    with pytest.raises(ContractAmbiguousError) as caught:
        bench(lambda source: source.contract_id(aapl), contract=several)
    text = str(caught.value)
    assert "id 265598" in text
    assert "id 38708077" in text
    assert "Set primary_exchange (or con_id) in the universe: MEXI or NASDAQ" in text


def test_one_contract_told_twice_is_one(bench: Any, aapl: Instrument, words: Any) -> None:
    """The same contract on two exchanges is not ambiguous."""

    def twice(talk: Any, fields: list[str]) -> None:
        for _ in range(2):
            talk.send(*(text.format(id=fields[2]) for text in words.details))
        talk.send(52, 1, fields[2])

    assert bench(lambda source: source.contract_id(aapl), contract=twice) == 265598


@pytest.mark.parametrize(
    ("account", "origin"), [("DU" + "1234567", Origin.IB), ("SIM000001", Origin.SIMULATED)]
)
def test_the_account_says_where_bars_come_from(bench: Any, account: str, origin: Origin) -> None:
    """An account that begins with SIM is a simulated gateway's, any other one real."""

    async def ask(source: GatewaySource) -> Any:
        return source.origin

    assert bench(ask, account=account) is origin


def test_the_account_is_never_shown(bench: Any, caplog: pytest.LogCaptureFixture) -> None:
    """Neither its login's name, texts nor logs hold it, even where everything is logged."""
    caplog.set_level("DEBUG")

    async def ask(source: GatewaySource) -> Any:
        return f"{source.login}, {source!r}, {await source.health()}"

    account = "U" + "7654321"
    shown = bench(ask, account=account)
    assert shown.startswith("login 1, ")
    assert account[1:] not in shown + caplog.text


def test_logins_have_names_that_tell_them_apart(bench: Any) -> None:
    """A login keeps its name; the order in which a gateway lists its accounts does not matter."""

    async def ask(source: GatewaySource) -> Any:
        return source.login

    names = [bench(ask, account=account) for account in ("U1,U2", "U3", "U2,U1,")]
    assert names == ["login 1", "login 2", "login 1"]


def test_now_is_the_gateways_clock(bench: Any) -> None:
    """A gateway that is minutes ahead says what time it is."""

    async def ask(source: GatewaySource) -> Any:
        return source.now() - datetime.now(UTC), (await source.health()).clock_offset_s

    ahead, offset_s = bench(ask, clock_offset_s=300)
    assert timedelta(seconds=240) < ahead < timedelta(seconds=301)
    assert 240 < offset_s < 301


def test_bars_survive_the_connection(bench: Any, minute_request: BarRequest) -> None:
    """A table is a value of its own: it is whole after the gateway is gone."""
    answer = bench(lambda source: source.bars(minute_request))
    assert pa.Table.from_pylist(answer.bars.to_pylist(), schema=BAR_SCHEMA).equals(answer.bars)


def test_health_knows_the_age_of_the_last_answer(bench: Any, aapl: Instrument) -> None:
    """An answer about data counts, the time does not."""

    async def ask(source: GatewaySource) -> Any:
        before, begun_s = await source.health(), boot_time_s()
        await source.contract_id(aapl)
        after = await source.health()
        return before, after, boot_time_s() - begun_s

    before, after, took_s = bench(ask)
    assert before.last_answer_age_s is None
    assert 0 <= after.last_answer_age_s <= took_s
    assert after.is_good


def test_contracts_of_older_versions_are_read(bench: Any, aapl: Instrument, words: Any) -> None:
    """Below version 164 details have a version in front and one number more."""

    def older(talk: Any, fields: list[str]) -> None:
        texts = [text.format(id=fields[2]) for text in words.details]
        talk.send(texts[0], 8, *texts[1:14], 100, *texts[14:-3])
        talk.send(52, 1, fields[2])

    assert bench(lambda source: source.contract_id(aapl), contract=older, version=163) == 265598
