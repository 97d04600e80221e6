"""Beliefs about real gateways as values: how to ask about one, and how to judge what comes.

Not here: the beliefs (``ib.probe_table``), asking (``ib.probe``).
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime


@dataclass(frozen=True, slots=True)
class Trial:
    """One request, in the gateway's words; ``kind`` is bars or head."""

    end: str = ""
    duration: str = "1 D"
    bar_size: str = "1 hour"
    symbol: str = "AAPL"
    what_to_show: str = "TRADES"
    dates: int = 2
    kind: str = "bars"


@dataclass(frozen=True, slots=True)
class Seen:
    """What came: the answer's fields (none: there was none), and codes with their texts."""

    answer: tuple[str, ...] = ()
    codes: tuple[tuple[int, str], ...] = ()

    @property
    def rows(self) -> list[tuple[str, ...]]:
        """The bars of message 17, each with its eight texts."""
        texts = self.answer[5:]
        return [texts[place : place + 8] for place in range(0, len(texts), 8)]

    @property
    def stamps(self) -> list[str]:
        """What the bars are stamped with, as the gateway wrote it."""
        return [row[0] for row in self.rows]

    @property
    def moments(self) -> list[datetime]:
        """The stamps of bars within a day, as moments."""
        return [datetime.fromtimestamp(int(text), UTC) for text in self.stamps]

    @property
    def days(self) -> list[str]:
        """The different days of bars within a day, in UTC."""
        return sorted({f"{moment:%Y%m%d}" for moment in self.moments})

    def __str__(self) -> str:
        codes = "; ".join(f"{code} {text}" for code, text in self.codes)
        if not self.answer:
            return codes or "silence"
        told = f"{len(self.rows)} bars" if self.answer[0] == "17" else ", ".join(self.answer[2:5])
        return f"{told}; {codes}" if codes else told


Judge = Callable[[Seen], tuple[str, bool | None]]


@dataclass(frozen=True, slots=True)
class Fact:
    """A belief: its grade, what is expected, the request, and how what comes is judged.

    A judge gives what was seen in words, and whether it agrees; None where nothing was believed.
    """

    name: str
    grade: str
    expected: str
    trial: Trial
    judge: Judge = field(repr=False)


def days_are(*expected: str) -> Judge:
    """Expect bars of these days alone."""
    return lambda seen: (", ".join(seen.days) or str(seen), seen.days == list(expected))


def is_code(code: int, part: str = "") -> Judge:
    """Expect a code, with a part of its text."""

    def judge(seen: Seen) -> tuple[str, bool]:
        found = [text for one, text in seen.codes if one == code]
        return str(seen), any(part.casefold() in text.casefold() for text in found)

    return judge


def learned(seen: Seen) -> tuple[str, None]:
    """Expect nothing; tell what came."""
    return str(seen), None


def learned_days(seen: Seen) -> tuple[str, None]:
    """Expect nothing; tell the days of the bars."""
    return ", ".join(seen.days) or str(seen), None


def learned_stamp(seen: Seen) -> tuple[str, None]:
    """Expect nothing; tell how stamps and reach are written."""
    reach = " to ".join(seen.answer[2:4])
    return (f"{seen.stamps[0]}; answers {reach}" if seen.rows else str(seen)), None


def at_least(least: int) -> Judge:
    """Expect so many bars or more."""
    return lambda seen: (str(seen), len(seen.rows) >= least)


def exactly(count: int) -> Judge:
    """Expect so many bars."""
    return lambda seen: (str(seen), len(seen.rows) == count)


def first_clocks(*expected: str) -> Judge:
    """Expect the first bars at these times of the day (UTC)."""

    def judge(seen: Seen) -> tuple[str, bool]:
        clocks = [f"{moment:%H:%M}" for moment in seen.moments]
        shown = clocks[: len(expected)]
        return ", ".join(shown) or str(seen), shown == list(expected)

    return judge


def last_clock(expected: str) -> Judge:
    """Expect the last bar at this time of the day (UTC)."""

    def judge(seen: Seen) -> tuple[str, bool]:
        last = f"{seen.moments[-1]:%H:%M}" if seen.rows else ""
        return last or str(seen), last == expected

    return judge


def has_date(expected: str) -> Judge:
    """Expect a bar of a date."""
    return lambda seen: (", ".join(seen.stamps) or str(seen), expected in seen.stamps)


def all_missing(seen: Seen) -> tuple[str, bool]:
    """Expect that no bar has a volume."""
    volumes = {float(row[5]) for row in seen.rows}
    return f"volumes {sorted(volumes)}" if volumes else str(seen), volumes == {-1.0}


def all_hours(seen: Seen) -> tuple[str, bool]:
    """Expect bars around the clock."""
    return f"{len(seen.rows)} hours", len(seen.rows) >= 20


def clock_or_trading(seen: Seen) -> tuple[str, None]:
    """Tell whether seconds are those of the clock or of trading."""
    meaning = {6: "seconds of the clock", 24: "seconds of trading"}.get(len(seen.rows), "neither")
    return f"{seen}: {meaning}", None


def is_epoch(seen: Seen) -> tuple[str, bool]:
    """Expect seconds since 1970."""
    text = seen.answer[2] if seen.answer else ""
    return text or str(seen), text.lstrip("-").isdigit() and len(text) > 8


def is_wall(seen: Seen) -> tuple[str, bool]:
    """Expect date and time."""
    text = seen.answer[2] if seen.answer else ""
    return text or str(seen), ":" in text


def has_zone(seen: Seen) -> tuple[str, bool]:
    """Expect a full name of a zone in its own field."""
    zone = seen.answer[4] if len(seen.answer) > 4 and seen.answer[0] == "106" else ""
    return zone or str(seen), "/" in zone
