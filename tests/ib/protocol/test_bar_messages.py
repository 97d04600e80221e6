"""Reading reaches, heads and frames, without a socket."""

from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ktrdr_pipelines.domain.intervals import Interval
from ktrdr_pipelines.ib.protocol.bar_messages import History, head_of, reach_of
from ktrdr_pipelines.ib.protocol.times import written_moment
from ktrdr_pipelines.ib.protocol.transport import MAX_FRAME_BYTES, BadFrameError, FrameCutter


def at(hour: int, minute: int = 0, day: int = 5) -> Any:
    """Give a moment of January 2026."""
    return datetime(2026, 1, day, hour, minute, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("20260105-14:30:00", at(14, 30)),
        ("20260105 09:30:00 US/Eastern", at(14, 30)),
        ("20260105  09:30:00  America/New_York", at(14, 30)),
        ("20260105-09:30:00 US/Eastern", at(14, 30)),
        ("20260105 14:30:00 UTC", at(14, 30)),
        ("20260105 14:30:00 GMT", at(14, 30)),
        ("20260105 09:30:00", None),
        ("20260105 09:30:00 CST", None),
        ("20260105 09:30:00 No/Where", None),
        ("20260105 09:30:00 ../../etc/passwd", None),
        ("20261305-09:30:00", None),
        ("20260105", None),
        ("", None),
        ("soon", None),
    ],
)
def test_a_moment_is_read_only_where_its_zone_is_clear(text: str, moment: datetime | None) -> None:
    """Forms without a zone, with an ambiguous one, or with nonsense give none."""
    make_entry = written_moment(text)
    assert (make_entry and make_entry.earliest()) == moment


@pytest.mark.parametrize(
    ("start", "end", "reach"),
    [
        ("20260104-14:30:00", "20260105-14:30:00", Interval(at(14, 30, 4), at(14, 30))),
        ("20260104-14:30:00", "", None),
        ("", "20260105-14:30:00", None),
        ("20260105-14:30:00", "20260105-14:30:00", None),
        ("20260106-14:30:00", "20260105-14:30:00", None),
    ],
)
def test_a_reach_needs_two_moments_in_order(start: str, end: str, reach: Interval | None) -> None:
    """Half a reach, an empty one or a reversed one is none."""
    assert reach_of(History(start, end, 0, [])) == reach


def test_a_wall_time_that_occurs_twice_makes_the_reach_shorter() -> None:
    """In the hour that clocks repeat, nothing is claimed that may not have been answered."""
    twice = "20251102 01:30:00 US/Eastern"
    from_it = reach_of(History(twice, "20251102-12:00:00", 0, []))
    to_it = reach_of(History("20251102-00:00:00", twice, 0, []))
    assert from_it is not None
    assert to_it is not None
    assert from_it.start == datetime(2025, 11, 2, 6, 30, tzinfo=UTC)
    assert to_it.end == datetime(2025, 11, 2, 5, 30, tzinfo=UTC)


@given(st.text(max_size=40))
def test_no_text_breaks_the_reading_of_moments(text: str) -> None:
    """Any text gives a moment in UTC or none."""
    make_entry = written_moment(text)
    moment = make_entry and make_entry.earliest()
    assert moment is None or moment.tzinfo is UTC


@pytest.mark.parametrize(
    ("text", "head"),
    [
        ("345479400", datetime(1980, 12, 12, 14, 30, tzinfo=UTC)),
        ("-315619200", datetime(1960, 1, 1, tzinfo=UTC)),
        ("19801212-14:30:00", datetime(1980, 12, 12, 14, 30, tzinfo=UTC)),
        ("19801212 09:30:00 US/Eastern", datetime(1980, 12, 12, 14, 30, tzinfo=UTC)),
        ("", None),
        ("0", None),
        ("-1", None),
    ],
)
def test_a_head_is_read_in_every_form_with_a_zone(text: str, head: datetime | None) -> None:
    """Epochs, before 1970 too, and moments; nothing and zero mean that there is none."""
    assert head_of(text) == head


@given(st.lists(st.binary(min_size=2, max_size=40), max_size=8), st.data())
def test_frames_are_cut_however_the_bytes_arrive(bodies: list[bytes], data: Any) -> None:
    """Any split of the stream gives the same frames."""
    stream = b"".join(len(body).to_bytes(4) + body for body in bodies)
    cuts = data.draw(st.lists(st.integers(0, len(stream)), max_size=6).map(sorted))
    cutter, frames = FrameCutter(), []
    for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        frames += cutter.feed(stream[start:end])
    assert [frame[4:] for frame in frames] == bodies


@pytest.mark.parametrize("length", [0, 1, MAX_FRAME_BYTES + 1, 2**32 - 1])
def test_a_length_that_no_frame_has_is_refused(length: int) -> None:
    """Nothing is collected in the hope that a gigabyte follows."""
    with pytest.raises(BadFrameError, match=str(length)):
        FrameCutter().feed(length.to_bytes(4))
