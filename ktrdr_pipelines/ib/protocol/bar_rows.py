"""The rows of message 17 as columns of numbers: which texts are numbers, and their values.

A row is eight texts: its time, then open, high, low, close, volume, average and count. IB writes
decimals in ASCII digits, possibly with an exponent (grade L): other texts that Python accepts
(``1_0.5``, digits of other scripts, ``nan``) are not numbers of IB's.

There are two readers. The one by texts reads everything, row by row. The one at once reads bytes
that hold such numbers only, in C and without a Python object for each, some ten times as fast; it
returns None for any others. Both read the same values.

Not here: which rows are bars (``ib.protocol.bar_messages``).
"""

import re
from dataclasses import dataclass
from typing import Final

import numpy as np
import pyarrow as pa

from ktrdr_pipelines.ib.protocol.times import written_moment
from ktrdr_pipelines.limits import IbLimitsRegistry

PER_ROW: Final = 8
PRICES: Final = 4
"""How many of a row's numbers are prices; the others may be empty, which means "not available"."""

_NOT_AVAILABLE: Final = IbLimitsRegistry.NO_MARKET_DATA_VALUE.value
_END: Final = "\0"  # separates the fields of a message, so no text contains it
_NUMBER = r"-?+(?>[0-9]++(?>(?:\.[0-9]*+)?)|\.[0-9]++)(?>(?:[eE][+-]?+[0-9]++)?)" + _END
_WHOLE_NUMBER = r"[0-9]{1,12}+" + _END
# Nothing is matched in two ways: with one bad text among good ones the match must not be tried with
# every possible division, whose number grows exponentially with the rows. Groups are atomic, since
# Python before 3.11.5 takes half a group under a possessive quantifier for a match.
_NUMBERS, _WHOLE_NUMBERS = (re.compile(f"(?>(?:{one})*)") for one in (_NUMBER, _WHOLE_NUMBER))
_ONE_NUMBER, _ONE_WHOLE_NUMBER = map(re.compile, (_NUMBER, _WHOLE_NUMBER))
_MOST_DIGITS: Final = 12
_DATE_DIGITS: Final = 8
_NUMERIC: Final = b"0123456789.-+eE\0"
_LEAST: Final = np.array([np.inf, *(10.0**power for power in range(_MOST_DIGITS))])
"""The least whole number without a leading zero of so many digits; no number has none."""


Message = list[str] | bytes
"""A message of the gateway: its texts, or the bytes of a message 17, without their length."""


@dataclass(frozen=True, slots=True)
class BarRows:
    """The rows of message 17.

    Attributes:
        times: of shape (n,): epoch seconds (int64), or dates (``datetime64[D]``) if they were read
            as such; 0 or 1970-01-01 where the text is none.
        numbers: of shape (7, n), float64; -1 where the text is no number, or an empty one.
        good: of shape (n,): whether all eight texts have a meaning.
    """

    times: np.ndarray
    numbers: np.ndarray
    good: np.ndarray


def texts_of(message: bytes) -> list[str]:
    r"""Return the NUL-terminated texts of a message, as ib_async's client reads them.

    What follows the last NUL is dropped, and bytes that are not UTF-8 are written as ``\xff``.
    """
    return message.decode(errors="backslashreplace").split(_END)[:-1]


def fields_of(message: Message) -> list[str]:
    """Return the texts of a message."""
    return texts_of(message) if isinstance(message, bytes) else message


def read_rows(content: list[str] | bytes, *, dated: bool) -> BarRows:
    """Read rows.

    Args:
        content: the texts of the rows, one after another; as bytes, each ends with a NUL.
        dated: whether times are dates, as ``20260105``; else they are epoch seconds, or date, time
            and zone.
    """
    if isinstance(content, bytes):
        return _read_at_once(content, dated=dated) or _read_texts(texts_of(content), dated=dated)
    return _read_texts(content, dated=dated)


def _read_at_once(content: bytes, *, dated: bool) -> BarRows | None:
    """Read rows of plain numbers; return None if a text is none, or might not be."""
    if not _is_numeric(content) or (found := _floats(content)) is None:
        return None
    values, lengths = found
    columns = np.ascontiguousarray(values.reshape(-1, PER_ROW).T)
    if _have_exponents(content) or not _are_digits(columns[0], lengths):
        return None
    times, good = columns[0].astype(np.int64), np.ones(len(lengths), bool)
    if dated:
        if (lengths != _DATE_DIGITS).any():
            return None
        times, good = _days_of(times)
    return BarRows(times, columns[1:], good)


def _floats(content: bytes) -> tuple[np.ndarray, np.ndarray] | None:
    """Return the values of all texts, and the length of each row's first one.

    It is None if Arrow does not read a text. What it takes is released before the next step: large
    responses would make the process ask the system for memory each time.
    """
    ends = np.flatnonzero(np.frombuffer(content, np.uint8) == 0)
    count = len(ends)
    offsets = np.zeros(count + 1, np.int32)
    # Without the NULs each text begins where the one before it ends, as Arrow needs it.
    offsets[1:] = ends
    del ends
    offsets[1:] -= np.arange(count, dtype=np.int32)
    joined = pa.py_buffer(content.translate(None, b"\0"))
    texts = pa.StringArray.from_buffers(count, pa.py_buffer(offsets), joined)
    try:
        values = texts.cast(pa.float64()).to_numpy()
    except pa.ArrowInvalid:
        return None
    return values, offsets[1::PER_ROW] - offsets[:-1:PER_ROW]


def _is_numeric(content: bytes) -> bool:
    """Return whether Arrow reads in these texts what the product reads as a number, no more.

    Of texts in these characters, Arrow reads those that match ``_NUMBER``, each as the nearest
    float, as Python does; and besides them those with a leading plus.
    """
    if not content or content.translate(None, _NUMERIC):
        return False
    pluses = content.count(b"+") if b"+" in content else 0
    return not pluses or pluses == content.count(b"e+") + content.count(b"E+")


def _have_exponents(content: bytes) -> bool:
    """Return whether the first text of a row has an exponent."""
    if b"e" not in content and b"E" not in content:
        return False
    characters = np.frombuffer(content, np.uint8)
    ends, marks = np.flatnonzero(characters == 0), np.flatnonzero(characters & 0xDF == ord("E"))
    return bool((ends.searchsorted(marks) % PER_ROW == 0).any())


def _are_digits(values: np.ndarray, lengths: np.ndarray) -> bool:
    """Return whether numbers are written in at most 12 digits, none of them a leading zero.

    Their texts have no exponents. A sign or a point leaves fewer digits than the text is long, so
    that the value is too small for its length.
    """
    if (lengths > _MOST_DIGITS).any():
        return False
    return bool((values >= _LEAST[lengths]).all())


def _days_of(numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return dates of numbers such as 20260105, 1970-01-01 where there is no such date."""
    year, month, day = numbers // 10_000, numbers // 100 % 100, numbers % 100
    months = ((year - 1970) * 12 + month - 1).astype("datetime64[M]")
    days = months.astype("datetime64[D]") + (day - 1)
    good = (month >= 1) & (month <= 12) & (day >= 1) & (days.astype("datetime64[M]") == months)
    return np.where(good, days, np.datetime64("1970-01-01")), good


def _read_texts(texts: list[str], *, dated: bool) -> BarRows:
    """Read rows of any texts."""
    times, good = (_dates if dated else _epochs)(texts[0::PER_ROW])
    numbers = np.empty((PER_ROW - 1, len(times)))
    for position in range(PER_ROW - 1):
        column = texts[position + 1 :: PER_ROW]
        numbers[position], known = _numbers(column, optional=position >= PRICES)
        good &= known
    return BarRows(times, numbers, good)


def _epochs(texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Return epoch seconds, 0 for a text that is not a time, and which texts are times.

    The requests are for epochs; date, time and zone are understood too.
    """
    if _WHOLE_NUMBERS.fullmatch(_END.join((*texts, ""))):
        return np.array([int(text) for text in texts], dtype=np.int64), np.ones(len(texts), bool)
    good = np.array([bool(_ONE_WHOLE_NUMBER.fullmatch(text + _END)) for text in texts], bool)
    numbers = [int(text) if is_one else 0 for text, is_one in zip(texts, good, strict=True)]
    seconds = np.array(numbers, dtype=np.int64)
    for position in np.flatnonzero(~good):
        written = written_moment(texts[position])
        if written is not None and (moment := written.earliest()) == written.latest() and moment:
            seconds[position], good[position] = int(moment.timestamp()), True
    return seconds, good


def _dates(texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Return dates, 1970-01-01 for a text that is not a date, and which texts are dates."""
    found = []
    for text in texts:
        try:
            is_date = len(text) == 8 and text.isascii() and text.isdigit()
            found.append(np.datetime64(f"{text[:4]}-{text[4:6]}-{text[6:]}") if is_date else None)
        except ValueError:
            found.append(None)
    good = np.array([one is not None for one in found], bool)
    days = np.array([one or np.datetime64("1970-01-01") for one in found], "datetime64[D]")
    return days, good


def _numbers(texts: list[str], *, optional: bool) -> tuple[np.ndarray, np.ndarray]:
    """Return numbers, -1 for a text that is not a number, and which texts are numbers.

    IB writes decimals in ASCII digits, possibly with an exponent (grade L): other texts that Python
    accepts (``1_0.5``, digits of other scripts, ``nan``) are not numbers of IB's. An optional one
    may be empty, which means "not available".
    """
    absent = str(_NOT_AVAILABLE)
    values = [text or absent for text in texts] if optional else texts
    if _NUMBERS.fullmatch(_END.join((*values, ""))):
        numbers = np.fromiter(map(float, values), dtype=np.float64, count=len(values))
        return numbers, np.ones(len(values), bool)
    good = np.array([bool(_ONE_NUMBER.fullmatch(text + _END)) for text in values], bool)
    read = (float(text) if is_one else -1.0 for text, is_one in zip(values, good, strict=True))
    return np.fromiter(read, dtype=np.float64, count=len(values)), good
