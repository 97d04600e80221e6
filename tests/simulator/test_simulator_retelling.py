"""A gateway that answers from a capture, asked frame by frame over a real socket."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from ktrdr_pipelines.errors import SimulatorError
from ktrdr_pipelines.ib.codes import NoDataError, error_for, error_frame
from ktrdr_pipelines.limits import CodeClass
from ktrdr_pipelines.simulator.behaviour import Behaviour
from ktrdr_pipelines.simulator.capture import read_capture
from ktrdr_pipelines.simulator.faults import Fault, FaultPlan, FaultRule
from ktrdr_pipelines.simulator.pacing import PacingMode
from ktrdr_pipelines.simulator.server import SimulatorServer, running_simulator
from tests.simulator.captures import (
    Line,
    bars_asked,
    bars_told,
    came,
    cut,
    error_told,
    head_asked,
    out,
    written,
)
from tests.simulator.rawclient import AAPL, END, RawClient, closes, raw_client

LOST = "Connectivity between IBKR and Trader Workstation has been lost."
DETAILS = ("AAPL", "STK", "", "0", "", "SMART", "USD", "AAPL", "NMS", "NMS", "265598")
Replayed = Callable[..., Any]


@pytest.fixture
def replayed(tmp_path: Path) -> Replayed:
    """Serve lines of a capture without waits, and connect to it."""

    @contextmanager
    def serve(*lines: Line, **other: Any) -> Iterator[tuple[SimulatorServer, RawClient]]:
        manners: dict[str, Any] = {"longest_wait_s": 0.0, "pacing": PacingMode.OFF}
        header = other.pop("header", {})
        now = other.pop("now", None)
        capture = read_capture(written(tmp_path / "a.jsonl", lines, **header))
        behaviour = Behaviour(**(manners | other))
        with (
            running_simulator(capture, now=now, behaviour=behaviour) as server,
            raw_client(server) as client,
        ):
            client.until(2158)
            yield server, client

    return serve


def test_the_answer_comes_with_the_id_of_who_asks(replayed: Replayed) -> None:
    """Two questions asked in another order, under other ids, get their own answers."""
    lines = (
        bars_asked(0, 7),
        bars_asked(0, 8, size="1 day"),
        bars_told(0, 8, 8.5),
        bars_told(0, 7, 7.5),
    )
    with replayed(*lines) as (server, client):
        client.bars(31, size="1 day")
        assert closes(client.until(17, 31)) == ["8.5"]
        client.bars(32)
        assert closes(client.until(17, 32)) == ["7.5"]
    assert [(record.bars, record.error_code) for record in server.requests] == [(1, None)] * 2


def test_the_same_question_is_answered_in_order_and_then_by_the_last(replayed: Replayed) -> None:
    """Bars, then an error, then other bars: the third answer is given again and again."""
    lines = (
        *(bars_asked(0, 1), bars_told(0, 1, 1.5)),
        *(bars_asked(0, 2), error_told(0, 2, 162, "Historical ... pacing violation")),
        *(bars_asked(0, 3), bars_told(0, 3, 3.5)),
    )
    with replayed(*lines) as (server, client):
        told = []
        for number in range(11, 16):
            client.bars(number)
            frame = client.until(162 if number == 12 else 17, number)
            told.append(frame[3] if frame[0] == "4" else closes(frame)[0])
        assert told == ["1.5", "162", "3.5", "3.5", "3.5"]
        with raw_client(server, client_id=2) as other:
            other.bars(11)
            assert closes(other.until(17, 11)) == ["1.5"]


def test_an_id_used_twice_means_two_questions(replayed: Replayed) -> None:
    """Answers belong to the latest question of their id."""
    lines = (
        *(bars_asked(0, 1), bars_told(0, 1, 1.5)),
        *(bars_asked(0, 1, size="1 day"), bars_told(0, 1, 2.5)),
    )
    with replayed(*lines) as (_, client):
        client.bars(5, size="1 day")
        assert closes(client.until(17, 5)) == ["2.5"]


def test_contract_details_come_with_their_end(replayed: Replayed) -> None:
    """All contracts that fitted, then message 52, each with the asker's id."""
    asked = (*AAPL, 0, "", "", "")
    lines = (
        out(0, 9, 8, 1, *asked),
        came(0, 10, 1, *DETAILS),
        came(0, 10, 1, *DETAILS[:-1], "999"),
        came(0, 52, 1, 1),
    )
    with replayed(*lines) as (server, client):
        client.send(9, 8, 44, *asked)
        assert client.until(52)[2] == "44"
        assert [frame[12] for frame in client.seen if frame[:2] == ["10", "44"]] == [
            "265598",
            "999",
        ]
        client.send(9, 8, 45, *AAPL, 0, "ISIN", "US0378331005", "")
        assert client.until(200)[2] == "45"
    assert [record.count for record in server.requests] == [2, None]


def test_old_contract_details_have_their_id_after_a_version(replayed: Replayed) -> None:
    """Message 10 of a server before 164; a client that can't speak that version is left."""
    asked = (*AAPL, 0, "", "", "")
    lines = (out(0, 9, 8, 1, *asked), came(0, 10, 8, 1, *DETAILS), came(0, 52, 1, 1))
    with replayed(*lines, header={"server_version": 163}) as (_, client):
        assert client.seen[0][0] == "163"
        client.send(9, 8, 44, *asked)
        client.until(52)
        assert [frame[:3] for frame in client.seen if frame[0] == "10"] == [["10", "8", "44"]]


def test_what_stayed_unanswered_stays_unanswered(replayed: Replayed) -> None:
    """Silence is a fact: no error takes its place, and giving up is answered as recorded."""
    lines = (
        bars_asked(0, 1),
        out(30, 25, 1, 1),
        error_told(30.1, 1, 162, "API historical data query cancelled: 1"),
        *(bars_asked(31, 2, size="1 day"), bars_told(32, 2, 2.5)),
    )
    with replayed(*lines) as (server, client):
        client.bars(5)
        client.bars(6, size="1 day")
        client.until(17, 6)
        assert client.quiet(4, 17)
        assert [record.is_open for record in server.requests] == [True, False]
        client.cancel(5)
        assert client.until(162)[2:5] == ["5", "162", "API historical data query cancelled: 1"]
        client.cancel(5)
        assert client.until(366)[2] == "5"


def test_bars_may_come_after_a_cancel(replayed: Replayed) -> None:
    """What a gateway sent when it was too late is sent when it is too late."""
    lines = (bars_asked(0, 1), out(30, 25, 1, 1), bars_told(30.1, 1, 1.5))
    with replayed(*lines) as (_, client):
        client.bars(5)
        assert client.quiet(4, 17)
        client.cancel(5)
        assert closes(client.until(17, 5)) == ["1.5"]
        assert client.quiet(4)


def test_a_cancel_that_nobody_recorded_is_answered_as_ever(replayed: Replayed) -> None:
    """162 where the request is open, 366 where it was answered."""
    lines = (bars_asked(0, 1), bars_asked(0, 2, size="1 day"), bars_told(0, 2, 2.5))
    with replayed(*lines) as (_, client):
        client.bars(5)
        client.cancel(5)
        assert client.until(162)[2] == "5"
        client.bars(6, size="1 day")
        client.until(17, 6)
        client.cancel(6)
        assert client.until(366)[2] == "6"


def test_a_notice_alone_is_no_answer(replayed: Replayed) -> None:
    """2174 is told, and the request goes on waiting; with bars after it both come, in order."""
    lines = (
        *(bars_asked(0, 1), error_told(0, 1, 2174, "without explicit time zone")),
        *(bars_asked(0, 2, size="1 day"), error_told(0, 2, 2174, "without"), bars_told(0, 2, 2.5)),
    )
    with replayed(*lines) as (server, client):
        client.bars(5)
        assert client.until(2174)[2] == "5"
        client.bars(6, size="1 day")
        client.until(17, 6)
        assert client.seen[-2][2:4] == ["6", "2174"]
        assert [record.is_open for record in server.requests] == [True, False]


def test_an_error_before_the_answer_is_part_of_it(replayed: Replayed) -> None:
    """165 and then bars are bars; both come, and the request is over with them."""
    lines = (
        bars_asked(0, 1),
        error_told(0, 1, 165, "HMDS server disconnect"),
        bars_told(0, 1, 1.5),
    )
    with replayed(*lines) as (server, client):
        client.bars(5)
        client.until(17, 5)
        assert client.seen[-2][2:4] == ["5", "165"]
    assert [(record.bars, record.error_code) for record in server.requests] == [(1, None)]


def test_notices_follow_the_question_that_they_followed(replayed: Replayed) -> None:
    """What concerns no request comes once, after the same cause; the first at the start."""
    lines = (
        error_told(0, -1, 2106, "HMDS data farm connection is OK:euhmds"),
        bars_asked(1, 1),
        error_told(2, -1, 1100, LOST),
        error_told(60, -1, 1102, "restored"),
        *(bars_asked(61, 2), bars_told(62, 2, 2.5)),
    )
    with replayed(*lines) as (_, client):
        assert client.until(2106)[4].endswith("euhmds")
        assert client.quiet(4)
        client.bars(5)
        assert client.until(1100)[2:5] == ["-1", "1100", LOST]
        client.until(1102)
        client.bars(6)
        client.until(17, 6)
        client.bars(7)
        client.until(17, 7)
        assert [frame[3] for frame in client.seen if frame[0] == "4"].count("1100") == 1


@pytest.mark.parametrize("number", [9, 20, 87])
def test_what_is_not_on_record_is_refused(replayed: Replayed, tmp_path: Path, number: int) -> None:
    """By 200 or 162, never by what our own client takes for "no data"; counted and logged."""
    log = tmp_path / "log"
    with replayed(bars_asked(0, 1), bars_told(0, 1, 1.5), log=log) as (server, client):
        if number == 9:
            client.send(9, 8, 5, *AAPL, 0, "", "", "")
        elif number == 20:
            client.bars(5, size="1 day")
        else:
            client.head(5)
        frame = client.until(200 if number == 9 else 162)
    error = error_frame(frame)
    assert "holds no answer to this question" in error.text
    assert "no data" not in error.text
    assert error.means is (CodeClass.CONTRACT if number == 9 else CodeClass.RETRY)
    assert not isinstance(error_for(error, "asked"), NoDataError)
    assert server.counts["unrecorded"] == 1
    events = [json.loads(line) for line in log.read_text().splitlines()]
    (event,) = (event for event in events if event["event"] == "unrecorded")
    assert event["request_id"] == 5
    (answered,) = (event for event in events if event["event"] == "answered")
    assert answered["error_code"] == int(frame[3])


@pytest.mark.parametrize(
    ("recorded", "asked", "is_known"),
    [
        ("20240109-21:00:00", "20240109-21:00:00", True),
        ("20240109-21:00:00", "20240109 16:00:00 US/Eastern", True),
        ("20240109-21:00:00", "20240109 21:00:00", False),
        ("20240109-21:00:00", "20240109-21:00:01", False),
        ("20240109-21:00:00", "", False),
        ("", "", True),
        ("", "20260105-14:31:00", True),
        ("20260105-14:30:10", "", True),
        ("20260105-14:30:10", "20260105-14:32:00", True),
        ("20260105-14:30:10", "20260105-12:00:00", False),
        ("no moment", "no moment", True),
        ("no moment", "no moment at all", False),
    ],
)
def test_an_end_is_matched_by_its_moment(
    replayed: Replayed, *, recorded: str, asked: str, is_known: bool
) -> None:
    """The same text, the same moment, or both of them now; bars to another end would be false."""
    with replayed(bars_asked(10, 1, recorded), bars_told(11, 1, 1.5)) as (server, client):
        client.bars(5, end=asked)
        client.until(17 if is_known else 162, 5)
        assert server.counts.get("unrecorded", 0) == (not is_known)


def test_the_very_end_is_preferred(replayed: Replayed) -> None:
    """An answer to the same text goes before one to the same moment."""
    local = "20240109 16:00:00 US/Eastern"
    lines = (
        *(bars_asked(0, 1, local), bars_told(0, 1, 1.5)),
        *(bars_asked(0, 2, END), bars_told(0, 2, 2.5)),
    )
    with replayed(*lines) as (_, client):
        for number, end, close in ((5, END, "2.5"), (6, local, "1.5")):
            client.bars(number, end=end)
            assert closes(client.until(17, number)) == [close]


def test_now_goes_on_from_the_beginning_of_the_record(replayed: Replayed) -> None:
    """The time is that of the clock, not what was told then; another now may be given."""
    began = 1_767_623_400
    with replayed(out(0, 49, 1), came(0, 49, 1, 5)) as (_, client):
        client.send(49, 1)
        assert began <= int(client.until(49)[2]) < began + 60
    with replayed(now="2024-01-10T20:00:30+00:00") as (_, client):
        client.send(49, 1)
        assert 0 <= int(client.until(49)[2]) - 1_704_916_830 < 60


def test_heads_are_answered_and_stay_open_until_cancelled(replayed: Replayed) -> None:
    """A head timestamp keeps its slot as it does at every gateway."""
    lines = (head_asked(0, 1), came(0, 88, 1, "345479400"), out(0, 90, 1), cut(0, "in", 62))
    with replayed(*lines) as (_, client):
        client.head(5)
        assert client.until(88, 5)[2] == "345479400"
        client.head(5)
        assert client.until(322)[2] == "5"
        client.send(90, 5)
        client.head(5)
        assert client.until(88, 5)[2] == "345479400"


def test_waits_are_kept_and_long_ones_cut(replayed: Replayed) -> None:
    """An answer of 40 s is due after the longest wait; before that the request is open."""
    lines = (
        *(bars_asked(0, 1), bars_told(40, 1, 1.5)),
        *(bars_asked(41, 2, size="1 day"), bars_told(41.01, 2, 2.5)),
    )
    with replayed(*lines, longest_wait_s=3_600.0) as (server, client):
        client.bars(5)
        client.bars(6, size="1 day")
        client.until(17, 6)
        assert server.requests[0].is_open
        assert client.quiet(17)
    with replayed(*lines, longest_wait_s=0.01) as (server, client):
        client.bars(5)
        assert closes(client.until(17, 5)) == ["1.5"]


def test_faults_and_pacing_work_on_top(replayed: Replayed) -> None:
    """A recorded answer can be bent, false, paced or held back like any other."""
    lines = (bars_asked(0, 1), error_told(0, -1, 2105, "broken:ushmds"), bars_told(0, 1, 1.5))
    rules = [
        FaultRule(Fault.RESTATED, nth=frozenset({1})),
        FaultRule(Fault.NO_DATA, nth=frozenset({2})),
        FaultRule(Fault.SILENCE, nth=frozenset({3})),
    ]
    with replayed(*lines, faults=FaultPlan(rules)) as (_, client):
        client.bars(5)
        assert closes(client.until(17, 5)) == ["0.75"]
        client.bars(6)
        assert client.until(162, 6)[4].startswith("Historical Market Data Service")
        client.bars(7)
        client.bars(8)
        client.until(17, 8)
        assert client.quiet(4, 17)
    with replayed(*lines, pacing=PacingMode.HARD) as (server, client):
        client.bars(5)
        client.until(17, 5)
        client.bars(6)
        assert "pacing violation" in client.until(162, 6)[4]
        assert sum(server.violations.values()) == 1


def test_an_empty_answer_can_be_bent(replayed: Replayed) -> None:
    """A gateway that said 0 bars says so, whatever fault is on top."""
    empty = came(0, 17, 1, "a", "b", 0)
    for fault in (Fault.CONFLICTING, Fault.PARTIAL, Fault.NEWEST_MISSING, Fault.DUPLICATED):
        faults = FaultPlan([FaultRule(fault)])
        with replayed(bars_asked(0, 1), empty, faults=faults) as (server, client):
            client.bars(5)
            assert client.until(17, 5)[2:] == ["a", "b", "0"]
            assert client.quiet(17)
        assert server.requests[0].count == 0


def test_a_fault_that_a_record_cannot_show_is_refused(tmp_path: Path) -> None:
    """Nothing says which bar is the oldest; the error names fault, file and way out."""
    capture = read_capture(written(tmp_path / "a.jsonl", []))
    behaviour = Behaviour(faults=FaultPlan([FaultRule(Fault.PAST_OLDEST)]))
    with pytest.raises(SimulatorError, match=r"a\.jsonl with the fault past_oldest"):
        SimulatorServer(capture, behaviour=behaviour)


def test_live_bars_are_answered_and_stay_open(replayed: Replayed) -> None:
    """Updates are cut from records: the first answer comes, and the request can be cancelled."""
    texts = ("", "1 hour", "1 D", 1, "TRADES", 2, 1, "")
    lines = (out(0, 20, 1, *AAPL, 0, *texts), bars_told(0, 1, 1.5))
    with replayed(*lines, update_s=0.01) as (_, client):
        client.send(20, 5, *AAPL, 0, *texts)
        assert closes(client.until(17, 5)) == ["1.5"]
        assert client.quiet(17, 90)
        client.cancel(5)
        assert client.until(162)[2] == "5"
