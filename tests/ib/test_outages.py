"""Outages of the gateway's own connections: open work pauses, and goes on by itself."""

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from ktrdr_pipelines.core.answers import BarRequest
from ktrdr_pipelines.core.instruments import Instrument
from ktrdr_pipelines.errors import OutageError
from ktrdr_pipelines.ib.codes import ErrorFrame
from ktrdr_pipelines.ib.notes import FarmState, GatewayNotes
from ktrdr_pipelines.ib.questions import Topic

LOST = (1100, "Connectivity between IBKR and Trader Workstation has been lost.")
BROKEN = (2105, "HMDS data farm connection is broken:ushmds")
MENDED = (2106, "HMDS data farm connection is OK:ushmds")
DATA_LOST = (1101, "Connectivity between IBKR and TWS has been restored - data lost.")
MAINTAINED = (1102, "Connectivity between IBKR and TWS has been restored - data maintained.")


@pytest.mark.parametrize(
    ("trouble", "end"), [(LOST, DATA_LOST), (LOST, MAINTAINED), (BROKEN, MENDED)]
)
def test_open_requests_are_asked_again_after_an_outage(
    bench: Any, minute_request: BarRequest, words: Any, *, trouble: Any, end: Any
) -> None:
    """The caller gets bars; the connection is the same, and the old request is cancelled."""

    def lose_once(talk: Any, fields: list[str]) -> None:
        if len(bench.gateway.asked(20)) == 1:
            talk.error(-1, *trouble)
            talk.later(0.05, lambda: talk.error(-1, *end))
        else:
            words.tell_bars(talk, fields)

    assert bench(lambda source: source.bars(minute_request), bars=lose_once).bars.num_rows == 2
    first, second = bench.gateway.asked(20)
    assert first[1] != second[1]
    assert first[2:] == second[2:]
    assert bench.gateway.asked(25) == [["25", "1", first[1]]]
    assert bench.gateway.connects == 1


def test_many_open_requests_all_go_on(bench: Any, minute_request: BarRequest, words: Any) -> None:
    """Every request that was open in an outage is answered after it."""
    requests = [replace(minute_request, duration=f"{days} D") for days in range(1, 6)]

    def lose_at_fifth(talk: Any, fields: list[str]) -> None:
        asked = len(bench.gateway.asked(20))
        if asked == 5:
            talk.error(-1, *LOST)
            talk.later(0.05, lambda: talk.error(-1, *MAINTAINED))
        elif asked > 5:
            words.tell_bars(talk, fields)

    async def ask(source: Any) -> Any:
        return await asyncio.gather(*(source.bars(request) for request in requests))

    answers = bench(ask, bars=lose_at_fifth)
    assert [answer.request for answer in answers] == requests
    assert len(bench.gateway.asked(20)) == 10


def test_requests_wait_for_a_broken_farm_and_for_a_while_only(
    bench: Any, minute_request: BarRequest, words: Any
) -> None:
    """After one deadline it is tried: the farm may be another one than the request needs."""

    def start(talk: Any, fields: list[str]) -> None:
        words.start(talk, fields)
        talk.error(-1, 2105, "HMDS data farm connection is broken:euhmds")

    async def ask(source: Any) -> Any:
        loop = asyncio.get_running_loop()
        moments = [loop.time()]
        for days in (1, 2):
            await source.bars(replace(minute_request, duration=f"{days} D"))
            moments.append(loop.time())
        return moments[1] - moments[0], moments[2] - moments[1]

    first_s, second_s = bench(ask, start=start)
    assert first_s >= 0.5
    assert second_s < 0.4


def test_an_outage_that_lasts_is_told_in_the_end(bench: Any, minute_request: BarRequest) -> None:
    """A request outlives a link that is lost and restored again and again, and not for ever."""

    def flap(talk: Any, fields: list[str]) -> None:
        talk.error(-1, *LOST)
        talk.later(0.05, lambda: talk.error(-1, *MAINTAINED))

    with pytest.raises(OutageError) as caught:
        bench(lambda source: source.bars(minute_request), bars=flap)
    assert caught.value.code == 1102
    assert caught.value.retry
    assert 3 < len(bench.gateway.asked(20)) < 20


def test_the_farm_of_contracts_holds_up_contracts(bench: Any, aapl: Instrument, words: Any) -> None:
    """2157 pauses questions about contracts until 2158."""

    def start(talk: Any, fields: list[str]) -> None:
        words.start(talk, fields)
        talk.error(-1, 2157, "Sec-def data farm connection is broken:secdefnj")
        mended = (2158, "Sec-def data farm connection is OK:secdefnj")
        talk.later(0.1, lambda: talk.error(-1, *mended))

    async def ask(source: Any) -> Any:
        before = asyncio.get_running_loop().time()
        await source.contract_id(aapl)
        return asyncio.get_running_loop().time() - before

    assert bench(ask, start=start) >= 0.05


def test_a_farm_of_market_data_stands_in_nobodys_way() -> None:
    """2103 is told by health; bars do not come from there."""
    notes = GatewayNotes()
    notes.take(ErrorFrame(-1, 2103, "Market data farm connection is broken:usfarm"))
    assert notes.troubles
    assert not any(notes.obstacle(topic) for topic in Topic)


def test_health_tells_of_every_farm(bench: Any, words: Any) -> None:
    """Each farm has the state that was last told of it."""

    def start(talk: Any, fields: list[str]) -> None:
        words.start(talk, fields)
        talk.error(-1, 2107, "HMDS data farm connection is inactive but available:cashhmds")
        talk.error(-1, *BROKEN)

    health = bench(lambda source: source.health(), start=start)
    assert {(farm.name, farm.state) for farm in health.farms} == {
        ("usfarm", FarmState.OK),
        ("ushmds", FarmState.BROKEN),
        ("cashhmds", FarmState.IDLE),
    }
