"""The frames and fields of the IB socket protocol: bytes in, bytes out, no I/O.

A frame is a 4-byte big-endian length and that many bytes of NUL-terminated text fields. Source:
``ib_async/client.py`` and ``ibapi/comm.py`` (grade S).

Not here: what a message means (``messages``, ``replies``) and when it may be sent
(``client_session``).
"""

import re
import struct
from collections.abc import Iterable, Iterator

GREETING = b"API\0"
"""The bytes that a client sends before its first frame."""

MAX_FRAME_BYTES = 0xFF_FFFF
"""The longest frame that a client may send: ``MAX_MSG_LEN`` in ``ibapi/common.py`` (grade S).

It limits received frames only: the ib_async client accepts responses of any length.
"""

_HEADER = struct.Struct(">I")
_VERSIONS = re.compile(r"v(\d{1,6})(?:\.\.(\d{1,6}))?(?: .*)?", re.DOTALL)

Field = str | int | float


class FrameError(ValueError):
    """The bytes are not a frame; the rest of the stream cannot be read."""


class FrameReader:
    """Cut a byte stream, fed in any pieces, into the payloads of its frames."""

    def __init__(self) -> None:
        self._data = bytearray()

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Add bytes and yield the payloads that they complete, oldest first.

        Raises:
            FrameError: a length is zero or above ``MAX_FRAME_BYTES``; the payloads before it have
                been yielded.
        """
        self._data += data
        while len(self._data) >= _HEADER.size:
            (length,) = _HEADER.unpack_from(self._data)
            if not 0 < length <= MAX_FRAME_BYTES:
                raise FrameError(f"frame length {length}")
            if len(self._data) < _HEADER.size + length:
                return
            payload = bytes(self._data[_HEADER.size : _HEADER.size + length])
            del self._data[: _HEADER.size + length]
            yield payload


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
    """Return a payload prefixed with its length."""
    return _HEADER.pack(len(payload)) + payload


def field_text(value: Field) -> str:
    """Return the text of a field: booleans as 1 and 0, floats as the shortest exact text."""
    if isinstance(value, bool):
        return "1" if value else "0"
    return value if isinstance(value, str) else repr(value)


def message(fields: Iterable[Field]) -> bytes:
    """Return the frame of a message of the given fields."""
    return frame("".join(f"{field_text(value)}\0" for value in fields).encode())


def parse_versions(payload: bytes) -> tuple[int, int]:
    """Return the lowest and highest version of a client's ``v157..178 options`` frame.

    Raises:
        FrameError: the frame contains no version range.
    """
    offer = payload.rstrip(b"\0").decode("ascii", errors="replace")
    found = _VERSIONS.fullmatch(offer)
    if found is None:
        raise FrameError(f"no version range: {offer[:40]!r}")
    lowest = int(found[1])
    return lowest, int(found[2] or lowest)
