"""The SQL of the DuckDB catalog: views, the ``series`` macro, tables.

It must parse in DuckDB shells older than the one that writes the file, so it keeps to what 1.1
knows. Not here: when and how the catalog is written and read (``store.catalog``).

``closes_at`` says when a bar is complete, so that a join on it cannot look ahead. It may be late,
never early: the earliest of the bar's full length, the next bar of its session, and the session's
close; for days and weeks the close of the last session, or well after it where no calendar knows.
"""

# ruff: noqa: S608  (every text that goes into these statements is a constant here or quoted here)

import re
from pathlib import Path

from ktrdr_pipelines.core.timeframes import Timeframe
from ktrdr_pipelines.store.layout import StoreLayout

TABLES = """
CREATE TABLE sessions (
    calendar VARCHAR, session_date DATE, opens_at TIMESTAMPTZ, closes_at TIMESTAMPTZ
);
CREATE TABLE instruments (
    symbol VARCHAR, ib_symbol VARCHAR, sec_type VARCHAR, exchange VARCHAR, currency VARCHAR,
    what_to_show VARCHAR, use_rth BOOLEAN, calendar VARCHAR, timeframes VARCHAR[], start DATE
);
CREATE TABLE coverage (
    symbol VARCHAR, timeframe VARCHAR, verdict VARCHAR, starts TIMESTAMPTZ, ends TIMESTAMPTZ,
    proved_at TIMESTAMPTZ, expires_at TIMESTAMPTZ
);
CREATE TABLE requests (
    series VARCHAR, contract_id BIGINT, what_to_show VARCHAR, gateway VARCHAR,
    account_hash VARCHAR, asked_end TIMESTAMPTZ, duration VARCHAR, sent_at TIMESTAMPTZ,
    took_s DOUBLE, outcome VARCHAR, code INTEGER, rows BIGINT, proved VARCHAR
);
"""

_NO_BARS = """(
    SELECT NULL::VARCHAR AS symbol, NULL::VARCHAR AS timeframe, NULL::TIMESTAMPTZ AS ts,
        NULL::DATE AS session_date, NULL::DOUBLE AS open, NULL::DOUBLE AS high,
        NULL::DOUBLE AS low, NULL::DOUBLE AS close, NULL::DOUBLE AS volume,
        NULL::DOUBLE AS average, NULL::INTEGER AS bar_count
    WHERE false)"""

_COLUMNS = "b.symbol, b.timeframe, b.ts, b.session_date, b.open, b.high, b.low, b.close, b.volume, \
b.average, b.bar_count"

_SESSION = """LEFT JOIN instruments AS i ON i.symbol = b.symbol
    LEFT JOIN sessions AS s ON s.calendar = i.calendar AND s.session_date = b.session_date"""

_SESSION_OF_ONE = """LEFT JOIN (
        SELECT x.session_date, x.closes_at FROM sessions AS x
        WHERE x.calendar = (SELECT i.calendar FROM instruments AS i WHERE i.symbol = symbol)
    ) AS s ON s.session_date = b.session_date"""

_WEEK = """LEFT JOIN instruments AS i ON i.symbol = b.symbol
    LEFT JOIN (
        SELECT calendar, CAST(date_trunc('week', session_date) AS DATE) AS monday,
            max(closes_at) AS closes_at
        FROM sessions GROUP BY ALL
    ) AS s ON s.calendar = i.calendar AND s.monday = CAST(b.ts AT TIME ZONE 'UTC' AS DATE)"""

_SHORT = frozenset({Timeframe.M1, Timeframe.M5, Timeframe.M15, Timeframe.M30})
_LONG = frozenset({Timeframe.H1, Timeframe.H4})
_KINDS = (_SHORT, _LONG, frozenset({Timeframe.D1}), frozenset({Timeframe.W1}))


def view_name(timeframe: Timeframe) -> str:
    """Give the name of the view of one timeframe's bars."""
    return f"bars_{timeframe}"


def views_sql(layout: StoreLayout, filled: frozenset[Timeframe]) -> str:
    """Make a view of each timeframe's bars and one of all.

    Args:
        layout: where the files stand; the views name them by absolute path.
        filled: the timeframes that have files; the views of the others have no rows.
    """
    views = []
    for timeframe in Timeframe:
        source = _all_series(layout, timeframe) if timeframe in filled else _NO_BARS
        length = f"INTERVAL {timeframe.seconds} SECONDS"
        body = _select(timeframe, _with_next(timeframe, source), length=length, session=_SESSION)
        views.append(f"CREATE VIEW {view_name(timeframe)} AS {body};")
    union = " UNION ALL ".join(f"SELECT * FROM {view_name(timeframe)}" for timeframe in Timeframe)
    return "\n".join([*views, f"CREATE VIEW bars AS {union};"])


def series_sql(layout: StoreLayout, *, filled: bool) -> str:
    """Make the macro that goes to one series by path.

    Args:
        layout: where the files stand.
        filled: whether the store has any file; DuckDB cannot name a path that has none.
    """
    source = _one_series(layout) if filled else _NO_BARS
    cases = " ".join(f"WHEN {_quoted(tf)} THEN {tf.seconds}" for tf in sorted(_SHORT | _LONG))
    length = f"to_seconds(CASE timeframe {cases} END)"
    branches = []
    for kind in _KINDS:
        bars = _joined_with_next(source) if kind is _LONG else source
        body = _select(min(kind), bars, length=length, session=_SESSION_OF_ONE)
        branches.append(f"{body} WHERE timeframe IN ({_quoted(*sorted(kind))})")
    return f"CREATE MACRO series(symbol, timeframe) AS TABLE {' UNION ALL '.join(branches)};"


def _with_next(timeframe: Timeframe, source: str) -> str:
    """Add the stamp of the session's next bar; filters on symbol and date still prune."""
    if timeframe not in _LONG:
        return source
    order = "PARTITION BY symbol, session_date ORDER BY ts"
    return f"(SELECT *, lead(ts) OVER ({order}) AS next_ts FROM {source})"


def _joined_with_next(source: str) -> str:
    """Add the stamp of the next bar of one series, by a join that lets a filter on ts prune."""
    following = f"(SELECT ts, lead(ts) OVER (ORDER BY ts) AS next_ts FROM {source})"
    return f"(SELECT o.*, n.next_ts FROM {source} AS o LEFT JOIN {following} AS n ON n.ts = o.ts)"


def _select(timeframe: Timeframe, source: str, *, length: str, session: str) -> str:
    """Select the bars of a source with the moment at which each is complete.

    Args:
        timeframe: whose bars, or one of those that are treated alike.
        source: what gives the bars; for hours with the stamp of the next one.
        length: SQL for the length of a bar.
        session: the join that gives the close of a bar's session.
    """
    if timeframe is Timeframe.D1:
        return _closing(source, session, "coalesce(s.closes_at, b.ts + INTERVAL 48 HOURS)")
    if timeframe is Timeframe.W1:
        return _closing(source, _WEEK, "coalesce(s.closes_at, b.ts + INTERVAL 192 HOURS)")
    following = "b.next_ts, " if timeframe in _LONG else ""
    close = "CASE WHEN s.closes_at > b.ts THEN s.closes_at END"
    return _closing(source, session, f"least(b.ts + {length}, {following}{close})")


def _closing(source: str, join: str, closes_at: str) -> str:
    return f"SELECT {_COLUMNS}, {closes_at} AS closes_at FROM {source} AS b {join}"


def _all_series(layout: StoreLayout, timeframe: Timeframe) -> str:
    """Name the files of one timeframe by glob."""
    path = f"{_literal_glob(layout.bars)}/symbol=*/timeframe={timeframe}/*.parquet"
    types = "{'symbol': VARCHAR, 'timeframe': VARCHAR}"
    return f"read_parquet({_quoted(path)}, hive_partitioning = true, hive_types = {types})"


def _one_series(layout: StoreLayout) -> str:
    """Name the files of the series that the macro's arguments say; a wild one is refused."""
    start = _quoted(f"{_literal_glob(layout.bars)}/symbol=")
    known = _quoted(*Timeframe)
    path = f"""CASE
        WHEN NOT regexp_full_match(symbol, '[A-Za-z0-9._-]+')
            THEN error('series(symbol, timeframe): no symbol can be ' || symbol)
        WHEN timeframe NOT IN ({known})
            THEN error('series(symbol, timeframe): no timeframe is ' || timeframe)
        ELSE {start} || symbol || '/timeframe=' || timeframe || '/*.parquet' END"""
    return (
        "(SELECT symbol AS symbol, timeframe AS timeframe, * "
        f"FROM read_parquet({path}, hive_partitioning = false))"
    )


def _literal_glob(path: Path) -> str:
    """Write a path so that a glob meets it alone, whatever characters it has."""
    return re.sub(r"[\[*?]", r"[\g<0>]", path.as_posix())


def _quoted(*texts: str) -> str:
    return ", ".join("'" + text.replace("'", "''") + "'" for text in texts)
