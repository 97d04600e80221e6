"""A file of what a real gateway said, as ``ktrdr probe`` writes it; errors say where and what.

JSON lines: a header (format, version, ``server_version``, ``began``), then one frame a line:
``at`` (seconds since ``began``), ``way`` (``out`` to the gateway, ``in`` from it), ``fields``, and
``cut`` where nothing but the number of the message is left. This reader is the simulator's own: it
shares no code with the writer, as a gateway shares none with its clients.

Not here: which answer belongs to which question (``exchanges``).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Literal, TypeVar

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from ktrdr_pipelines.errors import SimulatorError
from ktrdr_pipelines.limits import IbLimitsRegistry

LOWEST_VERSION, HIGHEST_VERSION = IbLimitsRegistry.SERVER_VERSIONS.value
_REMEDY = "Name a file that ktrdr probe wrote, as it wrote it"


class Way(StrEnum):
    """Who sent a frame: the client (out) or the gateway (in)."""

    OUT = "out"
    IN = "in"


@dataclass(frozen=True, slots=True)
class Frame:
    """A frame whose fields were kept, seconds since the beginning, and its line in the file."""

    at_s: float
    way: Way
    fields: tuple[str, ...]
    line: int


@dataclass(frozen=True, slots=True)
class Capture:
    """What went over one connection after its handshake; ``version`` is the server's."""

    path: Path
    version: int
    began: datetime
    frames: tuple[Frame, ...]

    def __repr__(self) -> str:
        return f"Capture({self.path}, {len(self.frames)} frames)"

    def default_now(self) -> datetime:
        """Return the now that suits it: when it began."""
        return self.began

    def error(self, line: int, came: str) -> SimulatorError:
        """Build an error about a line of it."""
        return _bad(self.path, line, came=came)


class _Header(BaseModel):
    model_config = ConfigDict(strict=True)
    format: Literal["ktrdr-capture"]
    version: Literal[1]
    server_version: Annotated[int, Field(ge=LOWEST_VERSION, le=HIGHEST_VERSION)]
    began: AwareDatetime


class _Line(BaseModel):
    model_config = ConfigDict(strict=True)
    at: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    way: Way
    fields: Annotated[tuple[str, ...], Field(min_length=1)]
    cut: bool = False


_Model = TypeVar("_Model", bound=BaseModel)


def read_capture(path: Path) -> Capture:
    """Read a capture, leaving out the frames that were cut.

    Raises:
        SimulatorError: it cannot be read, or a line of it is malformed; file and line are named.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        came = getattr(error, "strerror", None) or str(error)
        raise SimulatorError(f"read the capture {path}", came=came, remedy=_REMEDY) from error
    first, *rest = text.removesuffix("\n").split("\n")
    header = _read(_Header, first, path, 1)
    frames = tuple(_frames(rest, path))
    return Capture(path, header.server_version, header.began, frames)


def _frames(lines: list[str], path: Path) -> Iterator[Frame]:
    for number, text in enumerate(lines, 2):
        line = _read(_Line, text, path, number)
        if not line.cut:
            yield Frame(line.at, line.way, line.fields, number)


def _read(model: type[_Model], text: str, path: Path, line: int) -> _Model:
    try:
        return model.model_validate_json(text)
    except ValidationError as error:
        wrong = error.errors(include_url=False)[0]
        key = ".".join(map(str, wrong["loc"]))
        is_there = key and wrong["type"] != "missing"
        came = f"is {str(wrong['input'])[:40]!r}: {wrong['msg']}" if is_there else wrong["msg"]
        raise _bad(path, line, key, came=came) from error


def _bad(path: Path, line: int, key: str = "", *, came: str) -> SimulatorError:
    place = f", {key}" if key else ""
    return SimulatorError(f"{path}, line {line}{place}", came=came, remedy=_REMEDY)
