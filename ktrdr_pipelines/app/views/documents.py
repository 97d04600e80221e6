"""The base of all documents, and the parts that many of them share.

Not here: what commands print as text (``cli``), the envelope of REST (``api``).
"""

from collections.abc import Iterable
from datetime import datetime
from typing import Self

from pydantic import BaseModel, ConfigDict

from ktrdr_pipelines.domain.intervals import Interval
from ktrdr_pipelines.errors import GatewayError, KtrdrError


class Document(BaseModel):
    """A document of fixed fields. Instants are UTC, intervals end before their ``end``."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class ResultDocument(Document):
    """What a command returns: every document that ``--json`` prints begins with these fields.

    Attributes:
        complete: whether all that was asked for is done or there.
        exit_code: that of the command: 0 done, 1 failed, 2 bad usage, 3 incomplete, 128 and more
            stopped by a signal.
        market_clock_offset_s: by how much market time is ahead of real time; the command line sets
            it, and it is null elsewhere, or if the setting is invalid.
    """

    complete: bool
    exit_code: int
    market_clock_offset_s: float | None = None


class IntervalDocument(Document):
    """An interval of bar timestamps; the end is exclusive."""

    start: datetime
    end: datetime

    @classmethod
    def of(cls, interval: Interval) -> Self:
        """Return the document of an interval."""
        return cls(start=interval.start, end=interval.end)

    @classmethod
    def all_of(cls, intervals: Iterable[Interval]) -> list[Self]:
        """Return the documents of several intervals, in their order."""
        return [cls.of(one) for one in intervals]

    @classmethod
    def to_the_second(cls, intervals: Iterable[Interval]) -> tuple[Self, ...]:
        """Return the documents of several intervals, less fractions of a second.

        The last microsecond of a session is kept uncovered until its bars are complete.
        """
        return tuple(
            cls(start=one.start.replace(microsecond=0), end=one.end.replace(microsecond=0))
            for one in intervals
        )


class ErrorDocument(Document):
    """An error: its kind, its text, and what to do.

    Attributes:
        kind: the class of the error.
        message: all of it as text.
        what: what was attempted.
        reason: why it failed; may be empty.
        hint: what to do; may be empty.
        code: the gateway's own; null if it gave none, or the error is not one of a gateway.
    """

    kind: str
    message: str
    what: str
    reason: str
    hint: str
    code: int | None = None

    @classmethod
    def of(cls, error: KtrdrError) -> Self:
        """Return the document of an error."""
        fields = {
            "kind": type(error).__name__,
            "message": str(error),
            "what": error.what,
            "reason": error.reason,
            "hint": error.hint,
        }
        if isinstance(error, GatewayError):
            return cls.model_validate(fields | {"code": error.code})
        return cls.model_validate(fields)

    @classmethod
    def of_text(cls, kind: str, text: str) -> Self:
        """Return the document of what is no error of the project, such as a signal."""
        return cls(kind=kind, message=text, what=text, reason="", hint="")

    @classmethod
    def of_any(cls, error: KtrdrError | None) -> Self | None:
        """Return the document of an error; None for none."""
        return None if error is None else cls.of(error)


class FailureDocument(ResultDocument):
    """What a command that ended with an error prints, in place of its own document."""

    error: ErrorDocument

    @classmethod
    def of(cls, error: ErrorDocument, exit_code: int) -> Self:
        """Return the document of a command that an error or a signal ended."""
        return cls(complete=False, exit_code=exit_code, error=error)
