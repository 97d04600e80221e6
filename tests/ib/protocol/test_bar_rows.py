"""Reading the rows of message 17 at once and by their texts: both give the same values."""

from typing import Any

import numpy as np
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from ktrdr_pipelines.domain.instruments import Series
from ktrdr_pipelines.domain.timeframes import Timeframe
from ktrdr_pipelines.ib.protocol.bar_messages import bars_of, history_of
from ktrdr_pipelines.ib.protocol.bar_rows import read_rows, texts_of
from tests.support.fake_gateway import stock

FIRST = 1_767_623_400
ALPHABET = "0123456789+-.eE"
ODD_TEXTS = (
    *("", "+1", "-", ".", "1e", "1e5e5", "--1", "1_0", "nan", "inf", "0x10", " 1", "1 ", "1,0"),
    *("1e999", "-1e999", "1e-999", "4.9e-324", "9007199254740993", "1E+2", "1e+2", "+1e+2", "-0"),
    *("2147483647", "9223372036854775807", "1.7976931348623157E308", "\u0661", "\uff11", "-1"),
)
ODD_TIMES = (
    *("1767623400.0", "1.7676234e9", "1.7676234E9", "17676234e2", "-1767623400", "+1767623400"),
    *("01767623400", "0", "100", "1e2", "10e2", "999999999999", "1000000000000", "176762340"),
    *("20260105", "20260230", "20261305", "20260100", "00010101", "2026010", "202601055", "1.5"),
    *("20260105 09:30:00 US/Eastern", "20260105-14:30:00", "20260105  09:30:00", "2026010e"),
)

numbers = (
    st.floats(allow_nan=False, allow_infinity=False).map(repr)
    | st.floats(allow_nan=False, allow_infinity=False).map(lambda one: repr(one).upper())
    | st.decimals(0, 10**9, places=2).map(str)
    | st.integers(-(10**20), 10**20).map(str)
    | st.text(ALPHABET, max_size=12)
    | st.sampled_from(ODD_TEXTS)
)


@st.composite
def contents(draw: st.DrawFn) -> bytes:
    """Draw the bytes of some rows: as gateways send them, but for a few texts or bytes."""
    dated = draw(st.booleans())
    count = draw(st.integers(1, 6))
    texts: list[str] = []
    for row in range(count):
        time = 20260105 + row if dated else FIRST + 60 * row
        texts += [str(time), "10.05", "11.2", "9", "10.5", "1200", "10.251", "31"]
    for position in draw(st.lists(st.integers(0, len(texts) - 1), max_size=3)):
        is_time = position % 8 == 0
        texts[position] = draw(st.sampled_from(ODD_TIMES) | numbers if is_time else numbers)
    content = bytearray("".join(f"{text}\0" for text in texts), "utf-8")
    for position in draw(st.lists(st.integers(0, len(content) - 2), max_size=1)):
        content[position] = draw(st.integers(1, 255) if content[position] else st.just(0))
    return bytes(content)


def is_same(left: Any, right: Any) -> bool:
    """Return whether two arrays have the same type and bits, the sign of zero included."""
    return left.dtype == right.dtype and left.tobytes() == right.tobytes()


def first_row(time: str = str(FIRST), price: str = "10") -> bytes:
    """Return the bytes of one row."""
    return "".join(f"{one}\0" for one in (time, price, "11", "9", "10", "1", "10", "1")).encode()


@given(contents(), st.booleans())
@example(first_row("1e2"), False)
@example(first_row("10e2"), False)
@example(first_row("100000e3"), True)
@example(first_row(price="+1"), False)
@example(first_row(price="+1") + first_row(price="1e+1"), False)
@example(first_row(price="\u0661"), False)
@example(first_row("1234567.9999999999999999"), False)
@example(b"\xff\0" * 8, False)
@example(b"\0" * 8, False)
def test_both_readers_read_the_same(content: bytes, dated: bool) -> None:
    """Times, numbers and which rows have a meaning, to the bit."""
    at_once, by_text = read_rows(content, dated=dated), read_rows(texts_of(content), dated=dated)
    assert is_same(at_once.times, by_text.times)
    assert is_same(at_once.numbers, by_text.numbers)
    assert is_same(at_once.good, by_text.good)


@given(contents(), st.sampled_from([Timeframe.M1, Timeframe.D1, Timeframe.W1]))
def test_a_response_in_bytes_is_the_response_in_texts(content: bytes, size: Timeframe) -> None:
    """The bars, the odd rows, and the reason why there are no bars."""
    assume(content.endswith(b"\0"))
    header = f"17\x001\x00a\x00b\x00{content.count(0) // 8}\x00".encode()
    results: list[Any] = []
    for message in (header + content, texts_of(header + content)):
        try:
            found = bars_of(history_of(message), Series(stock(), size))
            results.append((found.bars.to_pylist(), list(found.impossible), found.implausible))
        except ValueError as error:
            results.append(str(error))
    assert results[0] == results[1]


@pytest.mark.parametrize(
    "message",
    [
        b"17\0",
        b"17\x001\0",
        b"17\x001\0a\0b\0",
        b"17\x001\0a\0b\0" + b"1\0",
        b"17\x001\0a\0b\0" + b"1\0" + first_row()[:-1],
        b"17\x001\0a\0b\0" + b"1\0" + first_row() + b"1",
        b"17\x001\0a\0b\0" + b"2\0" + first_row(),
        b"17\x001\0a\0b\0" + b"x\0" + first_row(),
        b"17\x001\0\xe2\x82\0b\0" + b"0\0",
        b"17\x001\0a\0b\0" + b"0\0" + b"rest",
    ],
)
def test_headers_are_the_same_in_bytes_and_in_texts(message: bytes) -> None:
    """A message that is cut, in the middle of a text or not, or states a wrong number of bars."""
    results: list[Any] = []
    for one in (message, texts_of(message)):
        try:
            found = history_of(one)
            rows = found.texts if isinstance(found.texts, list) else texts_of(found.texts)
            results.append((found.start, found.end, found.count, rows))
        except ValueError as error:
            results.append(str(error))
    assert results[0] == results[1]


def test_rows_are_read_as_python_reads_their_texts() -> None:
    """Prices of any number of digits are the nearest floats."""
    generator = np.random.default_rng(1)
    prices = [f"{one:.{digits}f}" for one in generator.random(500) * 1e6 for digits in range(20)]
    content = b"".join(first_row(price=price) for price in prices)
    assert read_rows(content, dated=False).numbers[0].tolist() == [float(one) for one in prices]
