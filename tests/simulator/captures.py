"""Captures written by hand, as ``ktrdr probe`` writes them: one JSON object a line."""

import json
from collections.abc import Sequence
from pathlib import Path

from tests.simulator.rawclient import AAPL, END

HEADER = {
    "format": "ktrdr-capture",
    "version": 1,
    "server_version": 178,
    "began": "2026-01-05T14:30:00Z",
}
Line = dict[str, object]


def out(at: float, *fields: object) -> Line:
    """Write a frame that the client sent."""
    return {"at": at, "way": "out", "fields": [str(field) for field in fields]}


def came(at: float, *fields: object) -> Line:
    """Write a frame that the gateway sent."""
    return out(at, *fields) | {"way": "in"}


def cut(at: float, way: str, kind: int) -> Line:
    """Write a frame of which the number alone was kept."""
    return {"at": at, "way": way, "fields": [str(kind)], "cut": True}


def bars_asked(at: float, number: int, end: str = END, size: str = "1 hour") -> Line:
    """Ask for bars, as ``RawClient.bars`` does."""
    return out(at, 20, number, *AAPL, 0, end, size, "1 D", 1, "TRADES", 2, 0, "")


def head_asked(at: float, number: int) -> Line:
    """Ask for the oldest data, as ``RawClient.head`` does."""
    return out(at, 87, number, *AAPL, 0, 1, "TRADES", 2)


def bars_told(at: float, number: int, close: float) -> Line:
    """Answer with one bar, known by its close."""
    bar = (1_704_828_600, close, close, close, close, 100, close, 1)
    return came(at, 17, number, "20240108 16:00:00", "20240109 16:00:00", 1, *bar)


def error_told(at: float, number: int, code: int, text: str) -> Line:
    """Answer with an error or notice."""
    return came(at, 4, 2, number, code, text, "")


def written(path: Path, lines: Sequence[Line], **header: object) -> Path:
    """Write a capture."""
    texts = [json.dumps(line) for line in (HEADER | header, *lines)]
    path.write_text("\n".join(texts) + "\n", encoding="utf-8")
    return path
