"""A gateway that answers from a capture, asked frame by frame over a real socket."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ktrdr_pipelines.errors import SimulatorError
from ktrdr_pipelines.simulator.behaviour import Behaviour
from ktrdr_pipelines.simulator.capture import read_capture
from ktrdr_pipelines.simulator.faults import Fault, FaultPlan, FaultRule
from ktrdr_pipelines.simulator.pacing import PacingMode
from ktrdr_pipelines.simulator.server import SimulatorServer
from tests.simulator.captures import (
    bars_asked,
    bars_told,
    came,
    cut,
    error_told,
    head_asked,
    out,
    written,
)
from tests.simulator.rawclient import AAPL, END, closes

LOST = "Connectivity between IBKR and Trader Workstation has been lost."
DETAILS = ("AAPL", "STK", "", "0", "", "SMART", "USD", "AAPL", "NMS", "NMS", "265598")
Replayed = Callable[..., Any]


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


def test_schedules_are_told(replayed: Replayed) -> None:
    """Message 106 comes whole, and counts its sessions."""
    texts = (END, "1 day", "2 D", 1, "SCHEDULE", 2, 0, "")
    told = ("US/Eastern", 2, *("20240108-09:30:00", "20240108-16:00:00", "20240108") * 2)
    lines = (out(0, 20, 1, *AAPL, 0, *texts), came(0, 106, 1, "start", "end", *told))
    with replayed(*lines) as (server, client):
        client.send(20, 5, *AAPL, 0, *texts)
        assert client.until(106, 5)[4:6] == ["US/Eastern", "2"]
    assert server.requests[0].count == 2


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
