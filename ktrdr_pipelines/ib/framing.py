"""Cutting a stream of bytes into frames: four bytes of length, then the fields.

Not here: what the fields mean.
"""

MAX_FRAME_BYTES = 256 * 1024 * 1024
"""Longer than any answer: a million bars are about 80 MB. What announces more is no gateway."""

MIN_FRAME_BYTES = 2
"""A field and its NUL."""

_PREFIX = 4


class BadFrameError(ValueError):
    """The stream is not what a gateway sends; nothing after this can be read."""


class FrameCutter:
    """Collects bytes and gives whole frames, each with its length in front."""

    def __init__(self) -> None:
        self._rest = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        """Add bytes and take out the frames that are now whole.

        Raises:
            BadFrameError: a length that no frame has.
        """
        self._rest += data
        frames: list[bytes] = []
        start = 0
        while (end := self._end_of(start)) <= len(self._rest):
            frames.append(bytes(self._rest[start:end]))
            start = end
        del self._rest[:start]
        return frames

    def _end_of(self, start: int) -> int:
        if len(self._rest) - start < _PREFIX:
            return start + len(self._rest) + _PREFIX
        length = int.from_bytes(self._rest[start : start + _PREFIX])
        if not MIN_FRAME_BYTES <= length <= MAX_FRAME_BYTES:
            raise BadFrameError(f"a frame of {length} bytes")
        return start + _PREFIX + length
