"""Frames and fields of the IB socket protocol: bytes in, bytes out, no I/O.

Here: how messages are cut out of a byte stream and how fields become bytes. Not here: what a
message means (``messages``, ``replies``) or when it may be sent (``session``).

Source: ``ib_async/client.py`` and ``ibapi/comm.py`` (grade S): a frame is a 4-byte big-endian
length and that many bytes of NUL-terminated text fields.
"""

import re
import struct
from collections.abc import Iterable, Iterator

GREETING = b"API\0"
"""What a client sends raw, before its first frame."""

MAX_FRAME_BYTES = 0xFF_FFFF
"""Longest frame a client may send: ``MAX_MSG_LEN`` in ``ibapi/common.py`` (grade S).

It binds what is received only: the ib_async client takes answers of any length.
"""

_HEADER = struct.Struct(">I")
_VERSIONS = re.compile(r"v(\d{1,6})(?:\.\.(\d{1,6}))?(?: .*)?", re.DOTALL)

Field = str | int | float


class FrameError(ValueError):
    """The bytes cannot be a frame; nothing after them can be trusted."""


class FrameReader:
    """Cut a byte stream, fed in any pieces, into the payloads of its frames."""

    def __init__(self) -> None:
        self._data = bytearray()

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Take bytes and yield the payloads that they complete, oldest first.

        Raises:
            FrameError: a length is zero or above ``MAX_FRAME_BYTES``; what came before it has
                been yielded.
        """
        self._data += data
        while (payload := self._next()) is not None:
            yield payload

    def _next(self) -> bytes | None:
        if len(self._data) < _HEADER.size:
            return None
        (length,) = _HEADER.unpack_from(self._data)
        if not 0 < length <= MAX_FRAME_BYTES:
            raise FrameError(f"frame length {length}")
        if len(self._data) < _HEADER.size + length:
            return None
        payload = bytes(self._data[_HEADER.size : _HEADER.size + length])
        del self._data[: _HEADER.size + length]
        return payload


def split_fields(payload: bytes) -> list[str]:
    """Return the fields of one payload.

    Raises:
        FrameError: the last field is not NUL-terminated, or the text is not UTF-8.
    """
    if not payload.endswith(b"\0"):
        raise FrameError("the last field is not NUL-terminated")
    try:
        return payload[:-1].decode().split("\0")
    except UnicodeDecodeError as error:
        raise FrameError("the text is not UTF-8") from error


def frame(payload: bytes) -> bytes:
    """Prefix a payload with its length."""
    return _HEADER.pack(len(payload)) + payload


def field_text(value: Field) -> str:
    """Write one field: booleans as 1 and 0, floats as the shortest text that reads back equal."""
    if isinstance(value, bool):
        return "1" if value else "0"
    return value if isinstance(value, str) else repr(value)


def message(fields: Iterable[Field]) -> bytes:
    """Frame a message of the given fields."""
    return frame("".join(f"{field_text(value)}\0" for value in fields).encode())


def parse_versions(payload: bytes) -> tuple[int, int]:
    """Read the lowest and highest version out of a client's ``v157..178 options`` frame.

    Raises:
        FrameError: the frame does not offer versions.
    """
    offer = payload.rstrip(b"\0").decode("ascii", errors="replace")
    found = _VERSIONS.fullmatch(offer)
    if found is None:
        raise FrameError(f"no version range: {offer[:40]!r}")
    lowest = int(found[1])
    return lowest, int(found[2] or lowest)
