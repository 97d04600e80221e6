"""Bars as JSON, an Arrow stream, Parquet or CSV: which one a request accepts, and writing it.

Every format is written in pieces of some thousand bars, so that a year of minutes neither lies in
memory twice nor keeps other requests waiting.

Not here: reading the bars (``app.reading``).
"""

import json
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
    """Yield the envelope of a ``BarsDocument``.

    Arrow makes the text of whole columns, during which other threads of Python run. Its numbers are
    the shortest that read back as the same bits, as those of Python are.
    """
    yield b'{"success":true,"data":{"dates":'
    yield from _array(bars, lambda piece: _joined('"', _dates(piece), '"'))
    yield b',"ohlcv":'
    yield from _array(bars, lambda piece: _joined("[", *_separated(_numbers(piece), ","), "]"))
    yield b',"points":'
    if points:
        yield from _array(bars, _points)
    else:
        yield b"null"
    described = json.dumps(metadata, default=_plain, allow_nan=False, separators=(",", ":"))
    yield b',"metadata":' + described.encode() + b'},"error":null}'


def _array(bars: pa.Table, encoded: Callable[[pa.Table], pa.Array]) -> Iterator[bytes]:
    """Yield a JSON array; ``encoded`` returns the text of the elements of some bars."""
    yield b"["
    for start in range(0, len(bars), _BATCH_BARS):
        texts = encoded(bars.slice(start, _BATCH_BARS).combine_chunks())
        whole = pa.ListArray.from_arrays(pa.array([0, len(texts)], pa.int32()), texts)
        yield b"," if start else b""
        yield pc.binary_join(whole, ",")[0].as_buffer().to_pybytes()
    yield b"]"


def _points(piece: pa.Table) -> pa.Array:
    fields = [
        part
        for name, text in zip(VALUES, _numbers(piece), strict=True)
        for part in (f',"{name}":', text)
    ]
    return _joined('{"timestamp":"', _dates(piece), '"', *fields, "}")


def _dates(piece: pa.Table) -> pa.Array:
    seconds = _column(piece, "ts").cast(pa.timestamp("s", tz="UTC"))
    return pc.strftime(seconds, "%Y-%m-%dT%H:%M:%SZ")


def _numbers(piece: pa.Table) -> list[pa.Array]:
    """Return the columns of values as JSON: what is no finite number is null."""
    columns = [_column(piece, name) for name in VALUES]
    return [
        pc.if_else(pc.is_finite(one), one.cast(pa.string()), "null").fill_null("null")
        for one in columns
    ]


def _column(piece: pa.Table, name: str) -> pa.Array:
    column = piece[name]
    return column.chunk(0) if column.num_chunks else pa.array([], column.type)


def _separated(columns: Sequence[pa.Array], separator: str) -> list[Any]:
    return [part for one in columns for part in (separator, one)][1:]


def _joined(*parts: Any) -> pa.Array:
    """Return the parts of each row joined; a text is the same in all rows."""
    return pc.binary_join_element_wise(*parts, "")


def _plain(value: object) -> str:
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat().replace("+00:00", "Z")
    return str(value)
