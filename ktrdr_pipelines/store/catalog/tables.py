"""The rows of the catalog's small tables, such as sessions, coverage, gaps and requests.

Not here: the tables' columns in SQL and the views over bars (``store.catalog.sql``).
"""

from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import asdict
from datetime import date, datetime, timedelta

import pyarrow as pa

from ktrdr_pipelines.domain.adjustments import Adjustment, factors_of
from ktrdr_pipelines.domain.calendars.registry import Calendars
from ktrdr_pipelines.domain.calendars.sessions import monday_of
from ktrdr_pipelines.domain.coverage import Coverage
from ktrdr_pipelines.domain.instruments import Instrument, Series
from ktrdr_pipelines.domain.planning.gaps import Gap
from ktrdr_pipelines.domain.timeframes import Timeframe
from ktrdr_pipelines.store.bars.bar_store import BarStore
from ktrdr_pipelines.store.bars.footer import joined_coverage
from ktrdr_pipelines.store.ledger.statements import StatementRecord

REQUESTS_KEPT = 10_000
"""How many of the newest audit rows the catalog has."""

SMALL_TABLES = frozenset({"sessions", "instruments", "coverage", "gaps", "statements", "requests"})
"""The tables of ``catalog_tables``."""

_AHEAD = timedelta(days=366)
_WEEK = timedelta(days=7)

_MOMENT = pa.timestamp("us", tz="UTC")
_SESSIONS = pa.schema(
    {
        "calendar": pa.string(),
        "session_date": pa.date32(),
        "opens_at": _MOMENT,
        "closes_at": _MOMENT,
    }
)
_INSTRUMENTS = pa.schema(
    {
        "symbol": pa.string(),
        "ib_symbol": pa.string(),
        "sec_type": pa.string(),
        "exchange": pa.string(),
        "currency": pa.string(),
        "what_to_show": pa.string(),
        "use_rth": pa.bool_(),
        "calendar": pa.string(),
        "timeframes": pa.list_(pa.string()),
        "start": pa.date32(),
    }
)
_COVERAGE = pa.schema(
    {
        "symbol": pa.string(),
        "timeframe": pa.string(),
        "verdict": pa.string(),
        "starts": _MOMENT,
        "ends": _MOMENT,
        "proved_at": _MOMENT,
        "expires_at": _MOMENT,
        "kind": pa.string(),
    }
)
_GAPS = pa.schema(
    {
        "symbol": pa.string(),
        "timeframe": pa.string(),
        "reason": pa.string(),
        "starts": _MOMENT,
        "ends": _MOMENT,
        "sessions": pa.int64(),
        "bars": pa.int64(),
        "next_try_at": _MOMENT,
        "detail": pa.string(),
    }
)
_STATEMENTS = pa.schema(
    {
        "symbol": pa.string(),
        "kind": pa.string(),
        "timeframe": pa.string(),
        "starts": _MOMENT,
        "ends": _MOMENT,
        "said_at": _MOMENT,
        "controlled": pa.bool_(),
        "voided_at": _MOMENT,
    }
)
_REQUESTS = pa.schema(
    {
        "series": pa.string(),
        "contract_id": pa.int64(),
        "what_to_show": pa.string(),
        "gateway": pa.string(),
        "login": pa.string(),
        "asked_end": _MOMENT,
        "duration": pa.string(),
        "sent_at": _MOMENT,
        "took_s": pa.float64(),
        "outcome": pa.string(),
        "code": pa.int32(),
        "rows": pa.int64(),
        "proved": pa.string(),
        "clock_offset_s": pa.float64(),
    }
)

_FACTORS = pa.schema(
    {
        "symbol": pa.string(),
        "basis": pa.int16(),
        "since": pa.date32(),
        "until": pa.date32(),
        "price": pa.float64(),
        "volume": pa.float64(),
    }
)
_ADJUSTMENTS = pa.schema(
    {
        "symbol": pa.string(),
        "number": pa.int32(),
        "kind": pa.string(),
        "ratio": pa.float64(),
        "volume_ratio": pa.float64(),
        "effective": pa.date32(),
        "is_estimated": pa.bool_(),
        "found_at": _MOMENT,
        "evidence": pa.string(),
        "note": pa.string(),
        "removed_at": _MOMENT,
    }
)
_FIRST, _LAST = date(1, 1, 1), date(9999, 12, 31)

Gaps = Iterable[tuple[Series, Gap]]
"""Gaps, each with its series."""

_Covered = Mapping[tuple[str, Timeframe], Coverage]


def catalog_tables(
    store: BarStore,
    universe: Sequence[Instrument],
    now: datetime,
    *,
    held: Mapping[tuple[str, Timeframe], int],
    known: AbstractSet[str] = frozenset(),
    gaps: Gaps = (),
) -> dict[str, pa.Table]:
    """Return the rows of each small table by its name.

    Args:
        store: the store.
        universe: the instruments.
        now: the table of sessions ends a year after it.
        held: the series on disk, and how many files each has.
        known: the names of files whose present version is in the ledger; others are read.
        gaps: the rows of the table of gaps.
    """
    instruments = {instrument.symbol: instrument for instrument in universe}.values()
    covered = _covered(store, held, known)
    calendars = store.ledger.calendars()
    return {
        "sessions": _sessions(instruments, covered, calendars, now),
        "instruments": _instruments(instruments, calendars),
        "coverage": _coverage(covered),
        "gaps": _gaps(gaps),
        "statements": _statements(store.ledger.statements.all()),
        "requests": pa.Table.from_pylist(
            [asdict(record) for record in store.ledger.requests.newest(REQUESTS_KEPT)],
            schema=_REQUESTS,
        ),
    }


def _covered(
    store: BarStore, held: Mapping[tuple[str, Timeframe], int], known: AbstractSet[str]
) -> dict[tuple[str, Timeframe], Coverage]:
    """Return the coverage of each series, from the ledger alone where that has all of its files."""
    recorded = store.ledger.files.recorded_coverage()
    covered = {}
    for (symbol, timeframe), number in held.items():
        files = recorded.get(f"{symbol}|{timeframe}", {})
        texts = [files[name] for name in sorted(files) if name in known]
        if len(texts) == number and len({identity for _, identity in texts}) == 1:
            coverage = joined_coverage(text for text, _ in texts)
        else:
            coverage = store.coverage_of(symbol, timeframe)
        covered[symbol, timeframe] = coverage
    return covered


def basis_tables(
    adjustments: Mapping[str, Sequence[Adjustment]], lost: Iterable[str] = ()
) -> dict[str, pa.Table]:
    """Return the rows of the tables of adjustments and of price factors, by the table's name.

    A symbol without adjustments has no factors. A factor holds for session dates from ``since`` to
    before ``until``; it is null for the symbols of which adjustments are ``lost``.
    """
    factors: list[dict[str, object]] = [
        {
            "symbol": symbol,
            "basis": one.basis,
            "since": one.since or _FIRST,
            "until": one.until or _LAST,
            "price": one.price,
            "volume": one.volume,
        }
        for symbol, ones in adjustments.items()
        for one in factors_of(ones)
    ]
    factors += [{"symbol": one, "basis": 0, "since": _FIRST, "until": _LAST} for one in lost]
    found = [
        {name: symbol if name == "symbol" else getattr(one, name) for name in _ADJUSTMENTS.names}
        for symbol, ones in adjustments.items()
        for one in ones
    ]
    return {
        "price_factors": pa.Table.from_pylist(factors, schema=_FACTORS),
        "adjustments": pa.Table.from_pylist(found, schema=_ADJUSTMENTS),
    }


def _sessions(
    instruments: Iterable[Instrument],
    covered: _Covered,
    all_calendars: Calendars,
    now: datetime,
) -> pa.Table:
    """Return the sessions of the calendars in use, in whole weeks: a cut week would end early."""
    calendars = all_calendars.each(instruments)
    parts = [coverage.bars.bounds for coverage in covered.values()]
    starts = [bounds.start.date() for bounds in parts if bounds]
    starts += [instrument.start for instrument in instruments]
    end = monday_of((now + _AHEAD).date()) + _WEEK
    first = monday_of(min(starts, default=end)) - _WEEK
    rows = [
        {
            "calendar": calendar,
            "session_date": session.day,
            "opens_at": session.opens_at,
            "closes_at": session.closes_at,
        }
        for calendar in sorted(calendars)
        for session in calendars[calendar].sessions(first, end)
    ]
    return pa.Table.from_pylist(rows, schema=_SESSIONS)


def _instruments(instruments: Iterable[Instrument], all_calendars: Calendars) -> pa.Table:
    names = [name for name in _INSTRUMENTS.names if name != "timeframes"]
    rows = [
        {name: getattr(instrument, name) for name in names}
        | {"timeframes": list(instrument.timeframes), "calendar": all_calendars.key_of(instrument)}
        for instrument in instruments
    ]
    return pa.Table.from_pylist(rows, schema=_INSTRUMENTS)


def _coverage(covered: _Covered) -> pa.Table:
    rows: list[dict[str, object]] = []
    for (symbol, timeframe), coverage in covered.items():
        series = {"symbol": symbol, "timeframe": timeframe}
        rows += [
            {**series, "verdict": "bars", "starts": part.start, "ends": part.end}
            for part in coverage.bars
        ]
        rows += [
            {
                **series,
                "verdict": "empty",
                "starts": proof.interval.start,
                "ends": proof.interval.end,
                "proved_at": proof.proved_at,
                "expires_at": proof.expires_at,
                "kind": proof.kind,
            }
            for proof in coverage.empty
        ]
    return pa.Table.from_pylist(rows, schema=_COVERAGE)


def _gaps(gaps: Gaps) -> pa.Table:
    rows = [
        {
            "symbol": series.symbol,
            "timeframe": series.timeframe,
            "reason": gap.reason,
            "starts": gap.interval.start,
            "ends": gap.interval.end,
            "sessions": gap.sessions,
            "bars": gap.bars,
            "next_try_at": gap.next_try_at,
            "detail": gap.detail,
        }
        for series, gap in gaps
    ]
    return pa.Table.from_pylist(rows, schema=_GAPS)


def _statements(records: Iterable[StatementRecord]) -> pa.Table:
    rows = [
        {
            "symbol": record.symbol,
            "kind": record.said.kind,
            "timeframe": record.said.timeframe,
            "starts": record.said.interval.start,
            "ends": record.said.interval.end,
            "said_at": record.said.said_at,
            "controlled": record.said.controlled,
            "voided_at": record.voided_at,
        }
        for record in records
    ]
    return pa.Table.from_pylist(rows, schema=_STATEMENTS)
