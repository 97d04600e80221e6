"""A record of what went over one connection, without anything that names a person.

The file is JSON lines, UTF-8. The first line is the header (one line)::

    {"format": "ktrdr-capture", "version": 1, "server_version": 178,
     "began": "2026-01-05T14:30:00Z"}

Every other line is one frame, in the order in which it was sent or came::

    {"at": 0.125, "way": "out", "fields": ["20", "7", "265598", "AAPL", ...]}
    {"at": 0.731, "way": "in", "fields": ["17", "7", "20260104 16:00:00 US/Eastern", ...]}

``at`` is seconds since the header's moment, ``way`` is ``out`` (from this program) or ``in``,
``fields`` are those of the wire protocol, the message number first. Whoever replays it answers an
``out`` frame by the ``in`` frames that carry its request id (field 1 of 17, 52's third, and so
on); the handshake is not in it.

What is scrubbed: frames of kinds that are not about historical data keep their number alone
(``"cut": true``); account numbers become placeholders wherever they stand; of the text of a code
stays what is known to be the gateway's own (``ib.known_texts``), the rest is ``(withheld)``.

Not here: asking (``ib.probe``).
"""

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Any

from ktrdr_pipelines.core.account_numbers import without_announced
from ktrdr_pipelines.errors import CorruptFileError, DiskError
from ktrdr_pipelines.ib.known_texts import WITHHELD, harmless

FORMAT, VERSION = "ktrdr-capture", 1
KEPT = {
    "in": frozenset({"4", "10", "17", "49", "52", "88", "106"}),
    "out": frozenset({"9", "20", "25", "49", "87", "90"}),
}
"""The message numbers whose fields are kept, by way: contracts, bars, heads, time, errors."""


class Way(StrEnum):
    """Who sent a frame: this program (out) or the gateway (in)."""

    OUT = "out"
    IN = "in"


@dataclass(frozen=True, slots=True)
class Frame:
    """One frame; of a ``cut`` one only the message number is left."""

    at_s: float
    way: Way
    fields: tuple[str, ...]
    cut: bool = False


@dataclass(frozen=True, slots=True)
class Capture:
    """What went over one connection after its handshake."""

    server_version: int
    began: datetime
    frames: tuple[Frame, ...]


class Scrubber:
    """Takes out of frames what names a person.

    Args:
        accounts: the account numbers of the connection; they are taken out wherever they stand.
    """

    def __init__(self, accounts: Iterable[str]) -> None:
        self._accounts = [name for name in accounts if name]

    def frame(self, at_s: float, way: Way, fields: Sequence[str]) -> Frame:
        """Make a frame that can be shown to anybody."""
        kind = fields[0]
        if kind not in KEPT[way]:
            return Frame(at_s, way, (kind,), cut=True)
        texts = [without_announced(text, self._accounts) for text in fields]
        if kind == "4":
            texts = _scrubbed_error(texts)
        return Frame(at_s, way, tuple(texts))


def check_writable(path: Path) -> None:
    """Make sure that a capture can be written, before anybody is asked anything.

    Raises:
        DiskError: it cannot; nothing is left behind.
    """
    try:
        existed = path.exists()
        with path.open("ab"):
            pass
        if not existed:
            path.unlink()
    except OSError as error:
        raise _refused(path, error) from error


def write_capture(path: Path, capture: Capture) -> None:
    """Write a capture.

    Raises:
        DiskError: the file cannot be written.
    """
    header = {
        "format": FORMAT,
        "version": VERSION,
        "server_version": capture.server_version,
        "began": f"{capture.began:%Y-%m-%dT%H:%M:%SZ}",
    }
    lines = [header, *map(_line_of, capture.frames)]
    try:
        path.write_text("".join(f"{json.dumps(line)}\n" for line in lines), encoding="utf-8")
    except OSError as error:
        raise _refused(path, error) from error


def read_capture(path: Path) -> Capture:
    """Read a capture.

    Raises:
        DiskError: the file cannot be read.
        CorruptFileError: it is no capture, or one of a version that is not known.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise DiskError(f"capture {path}", came=error.strerror or str(error)) from error
    with_place = _reading(path)
    header = with_place(1, lines[0] if lines else "", json.loads)
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise CorruptFileError(f"capture {path}", came="its first line is no header of one")
    if header.get("version") != VERSION:
        raise CorruptFileError(f"capture {path}", came=f"version {header.get('version')}")
    frames = [with_place(number, line, _frame_of) for number, line in enumerate(lines[1:], 2)]
    began = datetime.fromisoformat(header["began"])
    return Capture(int(header["server_version"]), began, tuple(frames))


def _refused(path: Path, error: OSError) -> DiskError:
    remedy = "Name a file in a folder that can be written, with room on its disk."
    return DiskError(f"capture {path}", came=error.strerror or str(error), remedy=remedy)


def _reading(path: Path) -> Callable[[int, str, Callable[[str], Any]], Any]:
    """Make a reader of lines whose errors name file and line."""

    def read(number: int, line: str, make: Callable[[str], Any]) -> Any:
        try:
            return make(line)
        except (ValueError, KeyError, TypeError) as error:
            came = f"line {number} is none of its lines"
            raise CorruptFileError(f"capture {path}", came=came) from error

    return read


def _line_of(frame: Frame) -> dict[str, Any]:
    line = {"at": round(frame.at_s, 3), "way": frame.way.value, "fields": list(frame.fields)}
    return line | ({"cut": True} if frame.cut else {})


def _frame_of(line: str) -> Frame:
    known = json.loads(line)
    fields = tuple(map(str, known["fields"]))
    return Frame(float(known["at"]), Way(known["way"]), fields, cut=bool(known.get("cut")))


def _scrubbed_error(fields: list[str]) -> list[str]:
    """Keep number, code and what is harmless of the text; drop what follows."""
    head, text = fields[:4], fields[4] if len(fields) > 4 else ""
    is_code = len(head) == 4 and head[-1].isdecimal()
    return [*head, harmless(int(head[-1]), text) if is_code else WITHHELD, ""]
