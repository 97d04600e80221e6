"""Reading message 17 and head timestamps, and cutting frames, without a socket."""

import math
import string
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ktrdr_pipelines.domain.instruments import Series
from ktrdr_pipelines.domain.intervals import Interval
from ktrdr_pipelines.domain.timeframes import Timeframe
from ktrdr_pipelines.ib.protocol.bar_messages import History, bars_of, head_of, history_of, reach_of
from ktrdr_pipelines.ib.protocol.times import written_moment
from ktrdr_pipelines.ib.protocol.transport import MAX_FRAME_BYTES, BadFrameError, FrameCutter
from ktrdr_pipelines.limits import IbLimitsRegistry
from tests.support.fake_gateway import stock


def at(hour: int, minute: int = 0, day: int = 5) -> Any:
    """Return a moment of January 2026."""
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
    """A form without a zone, with an ambiguous one, or an invalid one gives None."""
    written = written_moment(text)
    assert (written and written.earliest()) == moment


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
    """A missing, empty or reversed range gives None."""
    assert reach_of(History(start, end, 0, [])) == reach


def test_a_wall_time_that_occurs_twice_makes_the_reach_shorter() -> None:
    """In the repeated hour of a clock change the shorter range is claimed."""
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
    written = written_moment(text)
    moment = written and written.earliest()
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
    """Epochs, also before 1970, and moments; an empty text, 0 and -1 give None."""
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
    """An impossible length is refused before any data is collected."""
    with pytest.raises(BadFrameError, match=str(length)):
        FrameCutter().feed(length.to_bytes(4))


SERIES = Series(stock(), Timeframe.M1)

FIRST = 1_767_623_400

UNSET = IbLimitsRegistry.UNSET_VALUES.value

ALPHABET = "0123456789+-.eE"


def read(text: str) -> float | None:
    """Return the average that the second of three bars has with a text; None if it is no bar.

    The average may have any size and sign, but for what stands for "not available".
    """
    rows = [[FIRST + 60 * row, 10, 11, 9, 10, 1, 10, 1] for row in range(3)]
    texts = [str(value) for row in rows for value in row]
    texts[8 + 6] = text
    bars = bars_of(History("", "", 3, texts), SERIES).bars
    if bars.num_rows == 2:
        return None
    found = bars["average"].to_pylist()[1]
    return -1.0 if found is None else float(found)


def is_written_by_ib(text: str) -> bool:
    """Return whether a text is in the grammar ``-d.dE+d`` with its optional parts."""
    number = text.removeprefix("-")
    for mark in "eE":
        number, _, exponent = number.partition(mark)
        if exponent or text.count(mark):
            exponent = exponent[1:] if exponent[:1] in {"+", "-"} else exponent
            if not exponent or set(exponent) - set(string.digits):
                return False
            break
    whole, _, part = number.partition(".")
    return bool(whole + part) and not set(whole + part) - set(string.digits)


@st.composite
def number_texts(draw: st.DrawFn) -> str:
    """Draw a number as Python's repr, str and format write it."""
    number: Any = draw(
        st.floats(allow_nan=False, allow_infinity=False)
        | st.integers(-(10**30), 10**30)
        | st.decimals(allow_nan=False, allow_infinity=False)
    )
    form = draw(st.sampled_from(["", "f", ".3f", "e", "E", ".12g", ".1G"]))
    if isinstance(number, Decimal) and abs(number.adjusted()) > 400:
        form = draw(st.sampled_from(["", "e", "E"]))  # written in full it has as many digits
    return draw(st.sampled_from([str(number), format(number, form)]))


@given(number_texts())
@example("1.7976931348623157E308")
@example("9223372036854775807")
@example("-0")
@example("1E+2")
def test_what_programs_write_is_read_as_python_reads_it(text: str) -> None:
    """All that repr, str and format make of floats, integers and decimals."""
    expected = float(text)
    if math.isinf(expected):
        assert read(text) is None
    else:
        assert read(text) == (-1.0 if expected in UNSET else expected)


@given(st.text(ALPHABET, min_size=1, max_size=12))
@example("1e5")
@example(".5")
@example("5.")
@example("-.5e-3")
@example("1e")
@example(".")
@example("-")
@example("+1")
@example("1.2.3")
@example("1e5e5")
@example("--1")
def test_only_the_grammar_is_read(text: str) -> None:
    """Signs, points and exponents in any order: read is what Python reads, less a leading plus."""
    if is_written_by_ib(text):
        expected = float(text)
        found = read(text)
        assert found == (None if math.isinf(expected) else -1.0 if expected in UNSET else expected)
    else:
        assert read(text) is None


@given(st.text(ALPHABET, max_size=6), st.characters(), st.text(ALPHABET, max_size=6))
@example("1", "_", "0.5")
@example("", "\u0661", "0")
@example("", "\uff11", "")
@example("1", "\u00b2", "")
@example("1", " ", "0")
@example("", "\t", "10")
@example("1", ",", "000")
@example("10", "\n", "")
@example("10", ";", "11")
def test_no_other_character_is_part_of_a_number(before: str, other: str, after: str) -> None:
    """Whatever surrounds it, also where Python's float accepts it."""
    if other in ALPHABET or other == "\0":  # a null separates the fields on the wire
        return
    assert read(f"{before}{other}{after}") is None


@pytest.mark.parametrize("text", ["nan", "NaN", "inf", "-inf", "Infinity", "0x10", "1j", "None"])
def test_no_word_is_a_number(text: str) -> None:
    """Words that Python's float accepts are not numbers either."""
    assert read(text) is None


@pytest.mark.parametrize("count", ["\u0661", "0_1", "+1", " 1", "1 ", "1.0", "", "-1", "\u00b9"])
def test_a_count_of_bars_is_a_plain_number(count: str) -> None:
    """A message with another count is invalid as a whole."""
    fields = ["17", "1", "", "", count, str(FIRST), *["10", "11", "9", "10", "1", "1", "1"]]
    with pytest.raises(ValueError, match="bars"):
        history_of(fields)


@pytest.mark.parametrize(
    "text",
    [
        "\u0663\u0664\u0665479400",
        "\uff13\uff14\uff15479400",
        "345_479_400",
        "+345479400",
        "34547940\u00b2",
        "\u0661\u0669801212-14:30:00",
        "19801212-14:3\u0660:00",
        "--345479400",
        "1e9",
        "9" * 15,
        "9" * 40,
    ],
)
def test_a_head_in_other_digits_is_invalid(text: str) -> None:
    """Nor is a head of a year outside the calendar valid."""
    with pytest.raises(ValueError, match="head timestamp"):
        head_of(text)


@pytest.mark.parametrize(
    "text",
    ["\u0662\u0660260105-14:30:00", "20260105 \uff11\uff14:30:00 UTC", "20260105-14:30:0\u0660"],
)
def test_a_moment_in_other_digits_is_none(text: str) -> None:
    """The range of a response is read by the same rule."""
    assert written_moment(text) is None
