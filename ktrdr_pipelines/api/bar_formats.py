"""Bars as JSON, an Arrow stream, Parquet or CSV: which one a request accepts, and writing it.

Every format is written in pieces of some thousand bars, so that a year of minutes neither lies in
memory twice nor keeps other requests waiting.

Not here: reading the bars (``app.reading``).
"""

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from enum import Enum
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from ktrdr_pipelines.api.envelopes import RequestError

VALUES: Final = ("open", "high", "low", "close", "volume")
"""The columns of a bar after its timestamp, in the order of ``ohlcv``."""

_JSON_BARS: Final = 1_000
"""Bars of a piece of JSON: encoding it takes a few milliseconds, during which no other thread of
Python runs."""

_BATCH_BARS: Final = 8_192
_ROW_GROUP_BARS: Final = 65_536


class BarFormat(Enum):
    """A format of bars, by its media type and the suffix of its files; the first one is preferred.

    Those without columns of their own have ``ts, open, high, low, close, volume, average,
    bar_count``.
    """

    JSON = "application/json", "json"
    ARROW = "application/vnd.apache.arrow.stream", "arrows"
    PARQUET = "application/vnd.apache.parquet", "parquet"
    CSV = "text/csv", "csv"

    @property
    def media_type(self) -> str:
        """The media type."""
        return self.value[0]

    @property
    def suffix(self) -> str:
        """The usual suffix of a file."""
        return self.value[1]


def accepted_format(accept: str | None) -> BarFormat:
    """Return the format that an ``Accept`` header prefers; JSON if it has no preference.

    Raises:
        RequestError: 406, none of them is accepted; the error lists them.
    """
    ranges = [found for one in (accept or "*/*").split(",") if (found := _media_range(one))]
    best = max(BarFormat, key=lambda one: _quality(one.media_type, ranges))  # the first of equals
    if _quality(best.media_type, ranges) > 0:
        return best
    offered = [one.media_type for one in BarFormat]
    raise RequestError(
        "Accept",
        reason=f"none of its types is offered: {(accept or '')[:80]}",
        hint=f"Offered are {', '.join(offered)}",
        status=406,
        code="REQUEST-NotAcceptable",
        field="Accept",
        details={"offered": offered},
    )


def _media_range(text: str) -> tuple[str, float] | None:
    """Return a media range and its quality; None for what is no media range."""
    kind, *parameters = (part.strip().lower() for part in text.split(";"))
    if not re.fullmatch(r"[\w!#$&^.+*-]+/[\w!#$&^.+*-]+", kind):
        return None
    quality = 1.0
    for one in parameters:
        name, _, value = one.partition("=")
        if name.strip() == "q":
            if not re.fullmatch(r"0(\.\d*)?|1(\.0*)?", value.strip()):
                return None
            quality = float(value)
            break  # what follows extends the header, not the type
    return kind, quality


def _quality(media_type: str, ranges: Sequence[tuple[str, float]]) -> float:
    """Return the quality that the most specific range gives a media type, 0 without any."""
    family = media_type.partition("/")[0]
    for wanted in (media_type, f"{family}/*", "*/*"):
        found = [quality for kind, quality in ranges if kind == wanted]
        if found:
            return max(found)
    return 0.0


def written(
    bars: pa.Table, kind: BarFormat, metadata: Mapping[str, Any], *, points: bool = False
) -> Iterator[bytes]:
    """Yield bars in a format, in pieces.

    Args:
        bars: bars in order, with ``ts`` and the columns of ``VALUES`` at least.
        kind: the format.
        metadata: what the answer says of them; Arrow and Parquet have it in their schema, under
            ``ktrdr``, CSV has it nowhere.
        points: JSON has each bar as an object, too.
    """
    writers: dict[BarFormat, Callable[[], Iterator[bytes]]] = {
        BarFormat.JSON: lambda: _json(bars, metadata, points=points),
        BarFormat.ARROW: lambda: _arrow(_described(bars, metadata)),
        BarFormat.PARQUET: lambda: _parquet(_described(bars, metadata)),
        BarFormat.CSV: lambda: _csv(bars),
    }
    return writers[kind]()


class _Sink:
    """A file that gives what was written to it since it was last drained."""

    closed = False

    def __init__(self) -> None:
        self._pieces: list[bytes] = []
        self._size = 0

    def write(self, piece: Any) -> int:
        data = bytes(piece)
        self._pieces.append(data)
        self._size += len(data)
        return len(data)

    def tell(self) -> int:
        return self._size

    def flush(self) -> None:
        """Do nothing: all is written at once."""

    def close(self) -> None:
        self.closed = True

    def drain(self) -> bytes:
        found = b"".join(self._pieces)
        self._pieces.clear()
        return found


def _described(bars: pa.Table, metadata: Mapping[str, Any]) -> pa.Table:
    return bars.replace_schema_metadata({b"ktrdr": json.dumps(metadata, default=_plain).encode()})


def _arrow(bars: pa.Table) -> Iterator[bytes]:
    sink = _Sink()
    with pa.ipc.new_stream(pa.PythonFile(sink, mode="w"), bars.schema) as writer:
        for batch in bars.to_batches(max_chunksize=_BATCH_BARS):
            writer.write_batch(batch)
            yield sink.drain()
    yield sink.drain()


def _parquet(bars: pa.Table) -> Iterator[bytes]:
    sink = _Sink()
    with pq.ParquetWriter(pa.PythonFile(sink, mode="w"), bars.schema, compression="zstd") as writer:
        for start in range(0, len(bars), _ROW_GROUP_BARS):
            writer.write_table(bars.slice(start, _ROW_GROUP_BARS))
            yield sink.drain()
    yield sink.drain()


def _csv(bars: pa.Table) -> Iterator[bytes]:
    """Yield ``date,open,high,low,close,volume``; a null is empty, a date is ISO and in UTC."""
    sink = _Sink()
    dates = pc.strftime(bars["ts"].cast(pa.timestamp("s", tz="UTC")), "%Y-%m-%dT%H:%M:%SZ")
    table = pa.table({"date": dates, **{name: bars[name] for name in VALUES}})
    options = pa_csv.WriteOptions(include_header=False, quoting_style="none")
    sink.write(f"{','.join(table.column_names)}\n".encode())
    file = pa.PythonFile(sink, mode="w")
    with pa_csv.CSVWriter(file, table.schema, write_options=options) as writer:
        for batch in table.to_batches(max_chunksize=_BATCH_BARS):
            writer.write_batch(batch)
            yield sink.drain()
    yield sink.drain()


def _json(bars: pa.Table, metadata: Mapping[str, Any], *, points: bool) -> Iterator[bytes]:
    """Yield the envelope of a ``BarsDocument``."""
    yield b'{"success":true,"data":{"dates":['
    yield from _listed(bars, _dates)
    yield b'],"ohlcv":['
    yield from _listed(bars, lambda piece: list(zip(*_values(piece), strict=True)))
    yield b'],"points":'
    if points:
        yield b"["
        yield from _listed(bars, _points)
        yield b"]"
    else:
        yield b"null"
    described = json.dumps(metadata, default=_plain, allow_nan=False, separators=(",", ":"))
    yield b',"metadata":' + described.encode() + b'},"error":null}'


def _listed(bars: pa.Table, encoded: Callable[[pa.Table], list[Any]]) -> Iterator[bytes]:
    """Yield the elements of a JSON array, without its brackets."""
    for start in range(0, len(bars), _JSON_BARS):
        elements = encoded(bars.slice(start, _JSON_BARS))
        text = json.dumps(elements, allow_nan=False, separators=(",", ":"))[1:-1]
        yield (f",{text}" if start else text).encode()


def _points(piece: pa.Table) -> list[Any]:
    names = ("timestamp", *VALUES)
    rows = zip(_dates(piece), *_values(piece), strict=True)
    return [dict(zip(names, row, strict=True)) for row in rows]


def _dates(piece: pa.Table) -> list[Any]:
    seconds = piece["ts"].cast(pa.timestamp("s", tz="UTC"))
    texts: list[Any] = pc.strftime(seconds, "%Y-%m-%dT%H:%M:%SZ").to_pylist()
    return texts


def _values(piece: pa.Table) -> list[list[float | None]]:
    return [[_finite(one) for one in piece[name].to_pylist()] for name in VALUES]


def _finite(value: float | None) -> float | None:
    """Return a value as JSON can hold it: not a number is null."""
    return value if value is not None and math.isfinite(value) else None


def _plain(value: object) -> str:
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat().replace("+00:00", "Z")
    return str(value)
