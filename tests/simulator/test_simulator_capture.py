"""The simulator's own reader of captures: what it keeps, and what it refuses."""

import json
import re
from datetime import UTC, datetime
from pathlib import Path

import pytest

from ktrdr_pipelines.errors import SimulatorError
from ktrdr_pipelines.ib.capture import Capture as WrittenCapture
from ktrdr_pipelines.ib.capture import Frame as WrittenFrame
from ktrdr_pipelines.ib.capture import Way as WrittenWay
from ktrdr_pipelines.ib.capture import write_capture
from ktrdr_pipelines.simulator.capture import Frame, Way, read_capture
from ktrdr_pipelines.simulator.exchanges import exchanges_of
from tests.simulator.captures import (
    HEADER,
    bars_asked,
    bars_told,
    came,
    cut,
    error_told,
    out,
    written,
)

GOOD = json.dumps(HEADER)


def test_it_reads_what_the_probe_writes(tmp_path: Path) -> None:
    """Header and frames come back from the product's own writer, but for frames that were cut."""
    began = datetime(2026, 1, 5, 14, 30, tzinfo=UTC)
    frames = (
        WrittenFrame(0.125, WrittenWay.OUT, ("20", "7", "AAPL", "")),
        WrittenFrame(0.25, WrittenWay.IN, ("62",), cut=True),
        WrittenFrame(0.5, WrittenWay.IN, ("17", "7", "é\u2028")),
    )
    write_capture(tmp_path / "a.jsonl", WrittenCapture(176, began, frames))
    capture = read_capture(tmp_path / "a.jsonl")
    assert (capture.version, capture.began, capture.default_now()) == (176, began, began)
    assert capture.frames == (
        Frame(0.125, Way.OUT, ("20", "7", "AAPL", ""), line=2),
        Frame(0.5, Way.IN, ("17", "7", "é\u2028"), line=4),
    )
    assert repr(capture) == f"Capture({tmp_path / 'a.jsonl'}, 2 frames)"


@pytest.mark.parametrize(
    ("text", "place", "came"),
    [
        ("", "line 1", "JSON"),
        ("nonsense", "line 1", "JSON"),
        ("[1]", "line 1", "object"),
        ("{}", "line 1, format", "required"),
        (GOOD.replace("ktrdr-capture", "pcap"), "line 1, format", "'pcap'"),
        (GOOD.replace('"version": 1,', '"version": 2,'), "line 1, version", "is '2'"),
        (GOOD.replace("178", "187"), "line 1, server_version", "less than or equal to 178"),
        (GOOD.replace("178", "100"), "line 1, server_version", "greater than or equal to 157"),
        (GOOD.replace("00Z", "00"), "line 1, began", "timezone"),
        (GOOD.replace("2026-01-05T14:30:00Z", "noon"), "line 1, began", "'noon'"),
        (f"{GOOD}\n{{}}", "line 2, at", "required"),
        (f"{GOOD}\n\n", "line 2", "JSON"),
        (f'{GOOD}\n{{"at": -1, "way": "in", "fields": ["17"]}}', "line 2, at", "equal to 0"),
        (f'{GOOD}\n{{"at": NaN, "way": "in", "fields": ["17"]}}', "line 2, at", "finite"),
        (f'{GOOD}\n{{"at": "1", "way": "in", "fields": ["17"]}}', "line 2, at", "number"),
        (f'{GOOD}\n{{"at": 1, "way": "up", "fields": ["17"]}}', "line 2, way", "'up'"),
        (f'{GOOD}\n{{"at": 1, "way": "in", "fields": []}}', "line 2, fields", "at least 1"),
        (f'{GOOD}\n{{"at": 1, "way": "in", "fields": [17]}}', "line 2, fields.0", "string"),
        (f'{GOOD}\n{{"at": 1, "way": "in", "fields": "17"}}', "line 2, fields", "array"),
    ],
)
def test_a_file_that_is_no_capture_is_refused(
    tmp_path: Path, text: str, place: str, came: str
) -> None:
    """The error names file, line and key, what is there, and what would do."""
    path = tmp_path / "a.jsonl"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(SimulatorError, match=re.escape(f"{path}, {place}: ")) as refused:
        read_capture(path)
    assert came in refused.value.came
    assert "ktrdr probe" in str(refused.value)


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    """A missing file and one that is no text are told apart."""
    with pytest.raises(SimulatorError, match="No such file"):
        read_capture(tmp_path / "a.jsonl")
    (tmp_path / "b.jsonl").write_bytes(b"\xff\xfe")
    with pytest.raises(SimulatorError, match=r"b\.jsonl: .*utf-8"):
        read_capture(tmp_path / "b.jsonl")


@pytest.mark.parametrize(
    ("line", "kind"),
    [
        (out(1, 20, 7, "x"), 20),
        (out(1, 87, "seven"), 87),
        (out(1, "history"), "history"),
        (came(1, 17, 7), 17),
        (came(1, 17, 7, "", "", "many"), 17),
        (came(1, 17, "x", "", "", 0), 17),
        (came(1, 52, 1), 52),
        (error_told(1, 7, "odd", "text"), 4),  # type: ignore[arg-type]
        (came(1, 4, 2, 7), 4),
        (came(1, 88, 7), 88),
    ],
)
def test_frames_without_their_fields_are_refused(
    tmp_path: Path, line: dict[str, object], kind: object
) -> None:
    """A frame that was damaged is named by its line, not answered or dropped."""
    capture = read_capture(written(tmp_path / "a.jsonl", [bars_asked(0, 7), line]))
    with pytest.raises(SimulatorError, match=f"line 3: not the fields of message {kind}"):
        exchanges_of(capture)


def test_what_is_no_question_or_answer_is_passed_over(tmp_path: Path) -> None:
    """Cut frames, the time, other messages and answers to nobody make no exchange."""
    lines = [
        cut(0, "out", 61),
        cut(0, "in", 62),
        cut(0, "in", 20),
        out(0, 49, 1),
        came(0, 49, 1, 1_704_828_600),
        came(0, 90, 7, "an update"),
        bars_told(0, 3, 1.0),
        out(0, 25, 1, 3),
    ]
    exchanges = exchanges_of(read_capture(written(tmp_path / "a.jsonl", lines)))
    assert exchanges.by_meaning == {}
    assert exchanges.opening == ()
