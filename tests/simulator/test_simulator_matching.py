"""Which recorded answer a question gets, and what it gets where there is none."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ktrdr_pipelines.ib.codes import NoDataError, error_for, error_frame
from ktrdr_pipelines.limits import CodeClass
from tests.simulator.captures import bars_asked, bars_told, error_told
from tests.simulator.rawclient import AAPL, END, closes, raw_client

Replayed = Callable[..., Any]


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
