"""The SQL of the DuckDB catalog: views, the ``series`` macro, tables.

It must parse in DuckDB shells older than the one that writes the file, so it uses only what 1.1
knows; only where bar files of version 1 are left does it need 1.2 (``schema`` by column names).

The symbol of a bar is taken from the name of its file. DuckDB's own parsing of such paths looks at
the whole path, folders above the store included, and before version 2 reads a symbol NULL as no
symbol. A file that no query may read makes only those queries fail that would read it.

``bars``, ``bars_1m`` and the others, and ``series`` return bars on one price basis, today's: each
row is multiplied by the factor of its basis in the table ``price_factors``, and rows on an
unconfirmed basis are left out. A row on a basis that the table does not have, in a catalog older
than its file, is an error; so is a price of such a row in a filter, as DuckDB evaluates the filters
of a query in any order. ``raw``, ``raw_1m`` and the others, and ``raw_series`` return bars as
stored.

Where the store has imported bars, all views and macros have a last column ``origin``, and the
imported bars of all timestamps of which the gateway's store has none. They are never multiplied.

``closes_at`` is when a bar is complete, so that a join on it cannot look ahead. It may be late,
never early: the earliest of the bar's full length, the next bar of its session, and the session's
close; for days and weeks the close of the last session, or well after it where no calendar is
known, or where crypto bars may be of other days.

Not here: when and how the catalog is written and read (``store.catalog.catalog``).
"""

# ruff: noqa: S608  (every text that goes into these statements is a constant here or quoted here)

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Final

import pyarrow as pa

from ktrdr_pipelines.domain.bars import STORED_SCHEMA
from ktrdr_pipelines.domain.instruments import Origin
from ktrdr_pipelines.domain.timeframes import Timeframe
from ktrdr_pipelines.domain.universe.fields import KEY_PATTERN
from ktrdr_pipelines.store.bars.filing import ALL
from ktrdr_pipelines.store.catalog.name_ranges import NameRange, name_ranges
from ktrdr_pipelines.store.layout import StoreLayout

REFUSED: Final = "no query may read "
"""How a view's error begins for a file that is damaged or does not belong to the store."""

MIXED: Final = "no query may mix the price bases of "
"""How a view's error begins for bars that cannot be put on today's basis; the symbol follows."""

_MIXED_HINT: Final = (
    ": this catalog does not know the adjustments that its bars include. Hint: open the catalog "
    "again, or run `ktrdr repair`"
)

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
    proved_at TIMESTAMPTZ, expires_at TIMESTAMPTZ, kind VARCHAR
);
CREATE TABLE gaps (
    symbol VARCHAR, timeframe VARCHAR, reason VARCHAR, starts TIMESTAMPTZ, ends TIMESTAMPTZ,
    sessions BIGINT, bars BIGINT, next_try_at TIMESTAMPTZ, detail VARCHAR
);
CREATE TABLE statements (
    symbol VARCHAR, kind VARCHAR, timeframe VARCHAR, starts TIMESTAMPTZ, ends TIMESTAMPTZ,
    said_at TIMESTAMPTZ, controlled BOOLEAN, voided_at TIMESTAMPTZ
);
CREATE TABLE price_factors (
    symbol VARCHAR, basis SMALLINT, since DATE, until DATE, price DOUBLE, volume DOUBLE
);
CREATE TABLE adjustments (
    symbol VARCHAR, number INTEGER, kind VARCHAR, ratio DOUBLE, volume_ratio DOUBLE,
    effective DATE, is_estimated BOOLEAN, found_at TIMESTAMPTZ, evidence VARCHAR, note VARCHAR,
    removed_at TIMESTAMPTZ
);
CREATE TABLE requests (
    series VARCHAR, contract_id BIGINT, what_to_show VARCHAR, gateway VARCHAR,
    login VARCHAR, asked_end TIMESTAMPTZ, duration VARCHAR, sent_at TIMESTAMPTZ,
    took_s DOUBLE, outcome VARCHAR, code INTEGER, rows BIGINT, proved VARCHAR,
    clock_offset_s DOUBLE
);
"""

_NO_BARS = """
    SELECT NULL::VARCHAR AS symbol, NULL::VARCHAR AS timeframe, NULL::TIMESTAMPTZ AS ts,
        NULL::DATE AS session_date, NULL::DOUBLE AS open, NULL::DOUBLE AS high,
        NULL::DOUBLE AS low, NULL::DOUBLE AS close, NULL::DOUBLE AS volume,
        NULL::DOUBLE AS average, NULL::INTEGER AS bar_count, NULL::SMALLINT AS basis"""

_SYMBOL: Final = "string_split(filename, '/')[-3][8:]"
"""The symbol in the name of a file, ``.../symbol=AAPL/timeframe=1m/2025.parquet``."""

_KEYS = "b.symbol, b.timeframe, b.ts, b.session_date"
_ALL = ("open", "high", "low", "close", "volume", "average")


@dataclass(frozen=True, slots=True)
class _Basis:
    """How a view returns prices: its columns after the keys, a join and a filter."""

    columns: str
    join: str = ""
    condition: str = "true"

    @classmethod
    def raw(cls) -> "_Basis":
        """Return bars as stored, with their basis."""
        return cls(f"{', '.join(f'b.{one}' for one in _ALL)}, b.bar_count, b.basis")

    @classmethod
    def imported(cls, own: str, *, is_raw: bool) -> "_Basis":
        """Return imported bars as they are, where a source of the gateway's bars has none."""
        columns = f"{', '.join(f'b.{one}' for one in _ALL)}, b.bar_count"
        visible = "true" if is_raw else "o.basis >= 0"
        return cls(
            f"{columns}, NULL::SMALLINT AS basis" if is_raw else columns,
            condition=f"""NOT EXISTS (
            SELECT 1 FROM {own} AS o WHERE o.symbol = b.symbol AND o.ts = b.ts AND {visible}
        )""",
        )

    @classmethod
    def todays(cls, factors: str, *, is_adjusted: bool) -> "_Basis":
        """Return bars on today's basis.

        Args:
            factors: the source of the factors.
            is_adjusted: whether there are any; without them nothing is multiplied.
        """
        mixed = f"error({_quoted(MIXED)} || b.symbol || {_quoted(_MIXED_HINT)})"
        if not is_adjusted:
            values = (
                f"CASE WHEN b.basis > 0 THEN {mixed} ELSE b.{one} END AS {one}" for one in _ALL
            )
            return cls(
                f"{', '.join(values)}, b.bar_count",
                condition=f"CASE b.basis WHEN 0 THEN true WHEN -1 THEN false ELSE {mixed} END",
            )
        # A symbol without adjustments has no factors; one whose adjustments are lost has NULL.
        is_plain = "b.basis = 0 AND f.basis IS NULL"
        price, volume = (
            f"CASE WHEN f.{one} IS NOT NULL THEN f.{one} "
            f"WHEN b.basis < 0 OR ({is_plain}) THEN 1.0 ELSE {mixed} END"
            for one in ("price", "volume")
        )
        values = (f"b.{one} * {volume if one == 'volume' else price} AS {one}" for one in _ALL)
        return cls(
            f"{', '.join(values)}, b.bar_count",
            f"""LEFT JOIN {factors} AS f ON f.symbol = b.symbol AND f.basis = b.basis
        AND b.session_date >= f.since AND b.session_date < f.until""",
            f"CASE WHEN b.basis < 0 THEN false WHEN f.price IS NOT NULL OR ({is_plain}) THEN true "
            f"ELSE {mixed} END",
        )


_INSTRUMENT = "LEFT JOIN instruments AS i ON i.symbol = b.symbol"

_SESSION = f"""{_INSTRUMENT}
    LEFT JOIN sessions AS s ON s.calendar = i.calendar AND s.session_date = b.session_date"""

_WEEKS = """(
        SELECT calendar, CAST(date_trunc('week', session_date) AS DATE) AS monday,
            max(closes_at) AS closes_at
        FROM sessions GROUP BY ALL
    )"""

_MONDAY = "CAST(b.ts AT TIME ZONE 'UTC' AS DATE)"

_WEEK = f"""{_INSTRUMENT}
    LEFT JOIN {_WEEKS} AS s ON s.calendar = i.calendar AND s.monday = {_MONDAY}"""

_EITHER = f"""{_INSTRUMENT}
    LEFT JOIN (
        SELECT calendar, session_date AS day, false AS is_week, closes_at FROM sessions
        UNION ALL SELECT calendar, monday, true, closes_at FROM {_WEEKS}
    ) AS s ON s.calendar = i.calendar AND s.is_week = (b.timeframe = '1w')
        AND s.day = CASE b.timeframe WHEN '1w' THEN {_MONDAY} ELSE b.session_date END"""
"""The session of a bar, or the week of one of a week, for bars of all timeframes."""

_CLOSE = "CASE WHEN s.closes_at > b.ts THEN s.closes_at END"
_DAY_CLOSES = """CASE WHEN s.calendar LIKE 'CRYPTO%'
        THEN greatest(s.closes_at, b.ts + INTERVAL 24 HOURS)
        ELSE coalesce(s.closes_at, b.ts + INTERVAL 48 HOURS) END"""
_WEEK_CLOSES = """CASE WHEN s.calendar LIKE 'CRYPTO%'
        THEN greatest(s.closes_at, b.ts + INTERVAL 168 HOURS)
        ELSE coalesce(s.closes_at, b.ts + INTERVAL 192 HOURS) END"""
"""Crypto bars may be of UTC days instead of sessions: the later of both closes counts."""

_LONG = (Timeframe.H1, Timeframe.H4)

_NEXT_TS = "lead(ts) OVER (PARTITION BY symbol, session_date ORDER BY ts)"
"""The next bar of the session of a bar that may be shorter than its timeframe."""


@dataclass(frozen=True, slots=True)
class BarFilesSql:
    """What the SQL over bar files depends on.

    Attributes:
        layout: where the files lie; the views name them by absolute path.
        filled: the timeframes that have files; the views of the others have no rows.
        refused: files that no query may read, and why.
        has_older: whether files of version 1 are left, which have no column ``basis``.
        is_adjusted: whether the table of price factors has rows.
        imported: the series that have imported files, and whether they have others, too.
        origin: that of the bars which are not imported.
        files: how many files each symbol has, by timeframe. Where there are many, a view is a union
            over ranges of symbols, and a query of one symbol lists the files of its range alone.
            Without it the same rows come from one glob.
        unreadable: the timeframes of whose files DuckDB cannot open one, and its message. The views
            of all timeframes fail where they would read theirs.
    """

    layout: StoreLayout
    filled: frozenset[Timeframe]
    refused: Mapping[Path, str]
    has_older: bool = False
    is_adjusted: bool = False
    imported: Mapping[tuple[str, Timeframe], bool] = field(
        default_factory=lambda: MappingProxyType({})
    )
    origin: Origin = Origin.IB
    files: Mapping[Timeframe, Mapping[str, int]] = field(
        default_factory=lambda: MappingProxyType({})
    )
    unreadable: Mapping[Timeframe, str] = field(default_factory=lambda: MappingProxyType({}))

    @property
    def views(self) -> dict[str, str]:
        """The queries of all views by name, those of ``bars`` and ``raw`` last."""
        bases = {
            "bars": _Basis.todays("price_factors", is_adjusted=self.is_adjusted),
            "raw": _Basis.raw(),
        }
        views = {
            f"{name}_{timeframe}": self._timeframe_view(timeframe, basis, is_raw=name == "raw")
            for name, basis in bases.items()
            for timeframe in Timeframe
        }
        for name, basis in bases.items():
            every = (f"SELECT * FROM {name}_{timeframe}" for timeframe in Timeframe)
            views[name] = " UNION ALL ".join(every) if self.imported else self._every_view(basis)
        return views

    def _every_view(self, basis: _Basis) -> str:
        """Return the query of a view of all timeframes, for a store without imported bars.

        It has one join and one check of each column: as a union of the other views it would have
        those of all timeframes, and each costs a query as much as some files that it lists. Columns
        are taken by name: a file may have them in another order.
        """
        names = ", ".join(("symbol", "timeframe", *STORED_SCHEMA.names))
        parts = []
        for timeframe in Timeframe:
            following = _NEXT_TS if timeframe in _LONG else "NULL::TIMESTAMPTZ"
            source = self._source(timeframe)
            if reason := self.unreadable.get(timeframe):
                source = f"({_failing(_NO_BARS, reason)})"
            parts.append(f"SELECT {names}, {following} AS next_ts FROM {source}")
        return (
            f"SELECT {_KEYS}, {basis.columns}, {_closes_at('b.timeframe', 'b.next_ts')} "
            f"AS closes_at FROM ({' UNION ALL '.join(parts)}) AS b "
            f"{_EITHER} {basis.join} WHERE {basis.condition}"
        )

    @property
    def macros(self) -> dict[str, str]:
        """The queries of the macros by name, which read one series by path.

        Their parameters have names that no column has: DuckDB rejects an ambiguous name.
        """
        factors = "(SELECT * FROM price_factors WHERE symbol = of_symbol)"
        # Without any file: no bars for arguments that can name a series, an error for others.
        no_bars = f"({_NO_BARS} FROM range({_checked('0')}))"
        source = self._one_series() if self.filled else no_bars
        # Only the other read of the same files checks them, and what the arguments are.
        is_plain = bool(self.filled) and not self.imported and not self.refused
        path = self._series_glob(is_imported=False)
        timestamps = f"read_parquet({path}, hive_partitioning = false)" if is_plain else source
        macros = {
            name: _series(source, timestamps, basis)
            for name, basis in (
                ("series", _Basis.todays(factors, is_adjusted=self.is_adjusted)),
                ("raw_series", _Basis.raw()),
            )
        }
        if not self.imported:
            return macros
        imported = self._one_series(is_imported=True)
        return {
            name: self._with_imported(
                query,
                _series(imported, imported, _Basis.imported(source, is_raw=name == "raw_series")),
            )
            for name, query in macros.items()
        }

    def _timeframe_view(self, timeframe: Timeframe, basis: _Basis, *, is_raw: bool) -> str:
        """Return the query of the view of one timeframe."""
        source = self._source(timeframe)
        view = _view(timeframe, source, basis)
        if not self.imported:
            return view
        if timeframe not in {kind for _, kind in self.imported}:
            return self._with_imported(view)
        others = self._source(timeframe, is_imported=True)
        return self._with_imported(
            view, _view(timeframe, others, _Basis.imported(source, is_raw=is_raw))
        )

    def _with_imported(self, query: str, imported: str | None = None) -> str:
        """Return the rows of two queries with their origin in the last column."""
        whole = f"SELECT *, {_quoted(self.origin)} AS origin FROM ({query})"
        if imported is None:
            return whole
        return f"{whole} UNION ALL SELECT *, {_quoted(Origin.IMPORT)} AS origin FROM ({imported})"

    def _bars(self, *, is_imported: bool) -> Path:
        """Return the folder of the gateway's or of the imported bars."""
        return (StoreLayout(self.layout.imported) if is_imported else self.layout).bars

    def _source(self, timeframe: Timeframe, *, is_imported: bool = False) -> str:
        """Return the source that reads the files of one timeframe by glob."""
        if timeframe not in self.filled and not is_imported:
            return f"({_NO_BARS} WHERE false)"
        folder = literal_glob(self._bars(is_imported=is_imported))
        own = {
            file: why
            for file, why in self.refused.items()
            if file.parent.name == f"timeframe={timeframe}"
        }
        name = _quoted(f"/symbol={KEY_PATTERN}/timeframe={timeframe}{_name_pattern(timeframe)}")
        ranges = [] if is_imported else name_ranges(self.files.get(timeframe, {}))
        if ranges:
            return self._ranged(folder, timeframe, ranges, _allowed(name, own, self.layout))
        path = f"{folder}/symbol=*/timeframe={timeframe}/*.parquet"
        return self._read(_quoted(path), _SYMBOL, _quoted(timeframe), _allowed(name, own))

    def _ranged(
        self, folder: str, timeframe: Timeframe, ranges: Iterable[NameRange], allowed: str
    ) -> str:
        """Return the source that reads the files of one timeframe by ranges of symbols.

        DuckDB looks for the first two files of each list when it prepares a query, so each list
        begins with two placeholders, which are found without listing a folder. A folder that is
        gone is no error, as a range may lose its last symbol.
        """
        placeholders = [literal_glob(path) for path in placeholder_files(self.layout)]
        parts = []
        for one in ranges:
            globs = [
                f"{folder}/symbol={glob}/timeframe={timeframe}/*.parquet" for glob in one.globs
            ]
            until = "" if one.end is None else f" AND symbol < {_quoted(one.end)}"
            parts.append(
                f"SELECT * FROM (SELECT {_SYMBOL} AS symbol, * FROM "
                f"read_parquet([{_quoted(*placeholders, *globs)}], hive_partitioning = false, "
                f"filename = true, allow_empty = true{self._schema})) "
                f"WHERE symbol >= {_quoted(one.first)}{until}"
            )
        return (
            f"(SELECT symbol, {_quoted(timeframe)} AS timeframe, * EXCLUDE (symbol, filename) "
            f"FROM ({' UNION ALL '.join(parts)}) WHERE {allowed})"
        )

    def _one_series(self, *, is_imported: bool = False) -> str:
        """Return the source that reads the files of the series in a macro's arguments.

        DuckDB raises an error where no file is, so where a series has files of one origin alone,
        the source of the other one reads these and leaves out all of their rows.
        """
        own, other = (self._series_glob(is_imported=one) for one in (False, True))
        path, of_origin = own, ""
        if self.imported:
            chosen = [
                f"{symbol}|{timeframe}"
                for (symbol, timeframe), has_own in self.imported.items()
                if is_imported or not has_own
            ]
            is_chosen = f"of_symbol || '|' || of_timeframe IN ({_quoted(*chosen, '')})"
            path = f"CASE WHEN {is_chosen} THEN {other} ELSE {own} END"
            folder = f"{self._bars(is_imported=is_imported).as_posix()}/"
            of_origin = f"starts_with(filename, {_quoted(folder)}) AND "
        path = _checked(path)
        yearly = [one for one in Timeframe if one.is_yearly_filed]
        names = [_quoted(_name_pattern(one)) for one in (Timeframe.M1, Timeframe.D1)]
        name = f"CASE WHEN of_timeframe IN ({_quoted(*yearly)}) THEN {names[0]} ELSE {names[1]} END"
        allowed = _allowed(name, self.refused)
        return self._read(path, "of_symbol", "of_timeframe", f"{of_origin}{allowed}")

    def _series_glob(self, *, is_imported: bool) -> str:
        """Return SQL for the glob of the files of the series in a macro's arguments."""
        folder = _quoted(f"{literal_glob(self._bars(is_imported=is_imported))}/symbol=")
        return f"{folder} || of_symbol || '/timeframe=' || of_timeframe || '/*.parquet'"

    def _read(self, path: str, symbol: str, timeframe: str, allowed: str) -> str:
        return (
            f"(SELECT {symbol} AS symbol, {timeframe} AS timeframe, * EXCLUDE (filename) "
            f"FROM read_parquet({path}, hive_partitioning = false, filename = true{self._schema}) "
            f"WHERE {allowed})"
        )

    @property
    def _schema(self) -> str:
        """The option that names the columns, where not all files have all of them."""
        return f", schema = {_SCHEMA}" if self.has_older else ""


def _series(source: str, timestamps: str, basis: _Basis) -> str:
    """Return the query of a macro over a source; ``timestamps`` reads its column ``ts``.

    Its joins depend on the timeframe, a constant in each call: the planner removes those that do
    not apply. The next bar is joined, not windowed, so that a filter on ts prunes row groups.
    Each join, and each expression in one, costs a query more than a thousand rows do.
    """
    long = f"of_timeframe IN ({_quoted(*_LONG)})"
    closes_at = _closes_at("of_timeframe", "n.next_ts")
    return f"""SELECT {_KEYS}, {basis.columns}, {closes_at} AS closes_at
    FROM {source} AS b
    {basis.join}
    LEFT JOIN (
        SELECT CASE of_timeframe WHEN '1w' THEN CAST(date_trunc('week', session_date) AS DATE)
                ELSE session_date END AS day,
            max(closes_at) AS closes_at, max(calendar) AS calendar
        FROM sessions JOIN (SELECT calendar FROM instruments WHERE symbol = of_symbol)
            USING (calendar)
        GROUP BY day
    ) AS s ON s.day = CASE of_timeframe WHEN '1w' THEN {_MONDAY} ELSE b.session_date END
    LEFT JOIN (
        SELECT ts, lead(ts) OVER (ORDER BY ts) AS next_ts FROM {timestamps} WHERE {long}
    ) AS n ON n.ts = b.ts
    WHERE {basis.condition}"""


def _closes_at(timeframe: str, next_ts: str) -> str:
    """Return SQL for when a bar of a timeframe is complete, which is SQL, too."""
    seconds = " ".join(f"WHEN {_quoted(tf)} THEN {tf.seconds}" for tf in Timeframe)
    length = f"to_seconds(CASE {timeframe} {seconds} END)"
    return f"""CASE {timeframe}
        WHEN '1d' THEN {_DAY_CLOSES}
        WHEN '1w' THEN {_WEEK_CLOSES}
        ELSE least(b.ts + {length}, {next_ts}, {_CLOSE}) END"""


PARAMETERS: Final = "(of_symbol, of_timeframe)"
"""The parameters of each macro."""

NAMES_OTHER_FILES = """
    SELECT view_name FROM duckdb_views()
    WHERE database_name = 'ktrdr' AND contains(sql, '.parquet')
        AND NOT (contains(sql, ?) OR contains(sql, ?))
"""
"""Selects views of the attached catalog that name only files outside the two path prefixes."""

NAMES_FILE = """
    SELECT view_name FROM duckdb_views() WHERE database_name = 'ktrdr' AND contains(sql, ?)
"""
"""Selects views of the attached catalog that name a file."""

IS_OUTDATED = """
    SELECT 1 FROM duckdb_columns()
    WHERE database_name = 'ktrdr' AND table_name = 'requests' AND column_name = 'account_hash'
    UNION ALL
    SELECT 1 WHERE NOT EXISTS (
        SELECT 1 FROM duckdb_tables()
        WHERE database_name = 'ktrdr' AND table_name = 'price_factors'
    )
"""
"""Selects a row in catalogs of earlier versions: they have hashes of accounts, or no factors."""


def files_of(layout: StoreLayout) -> str:
    """Return the prefix of all bar files' paths in a view's text."""
    return f"{literal_glob(layout.bars)}/symbol=".replace("'", "''")


def placeholder_files(layout: StoreLayout) -> tuple[Path, Path]:
    """Return the paths of two files with the columns of bars and empty rows (``_ranged``).

    No query returns these rows: their symbol, by the position in the path, is "" and in no range.
    """
    folder = layout.state / "catalog"
    return folder / "placeholder_1.parquet", folder / "placeholder_2.parquet"


PLACEHOLDER_ROWS: Final = 10_000
"""Rows of each placeholder. DuckDB takes the first file of a list for an average one, and from that
which side of a join is the small one."""


def _view(timeframe: Timeframe, source: str, basis: _Basis) -> str:
    """Return the query for the bars of a source and the time at which each is complete."""
    if timeframe is Timeframe.D1:
        return _closing(source, _SESSION, _DAY_CLOSES, basis)
    if timeframe is Timeframe.W1:
        return _closing(source, _WEEK, _WEEK_CLOSES, basis)
    end = f"b.ts + INTERVAL {timeframe.seconds} SECONDS"
    if timeframe not in _LONG:
        return _closing(source, _SESSION, f"least({end}, {_CLOSE})", basis)
    source = f"(SELECT *, {_NEXT_TS} AS next_ts FROM {source})"
    return _closing(source, _SESSION, f"least({end}, b.next_ts, {_CLOSE})", basis)


def _closing(source: str, joins: str, closes_at: str, basis: _Basis) -> str:
    return (
        f"SELECT {_KEYS}, {basis.columns}, {closes_at} AS closes_at FROM {source} AS b "
        f"{joins} {basis.join} WHERE {basis.condition}"
    )


def refusing_source(reason: str, *, is_raw: bool, has_origin: bool = False) -> str:
    """Return the query of a view that always fails, for one that cannot be built from its files."""
    columns = _NO_BARS if is_raw else _NO_BARS.removesuffix(", NULL::SMALLINT AS basis")
    columns += ", NULL::TIMESTAMPTZ AS closes_at"
    return _failing(f"{columns}, NULL::VARCHAR AS origin" if has_origin else columns, reason)


def _failing(columns: str, reason: str) -> str:
    """Return a query of columns that are null which fails when it is run."""
    failure = f"CASE WHEN r.n >= 0 THEN error({_quoted(REFUSED + reason)}) END"
    columns = columns.replace("NULL::", f"{failure}::")
    return f"{columns} FROM range(1) AS r(n) WHERE {failure} IS NULL"


_TYPES: Final = {
    pa.timestamp("us", tz="UTC"): "TIMESTAMPTZ",
    pa.date32(): "DATE",
    pa.float64(): "DOUBLE",
    pa.int32(): "INTEGER",
    pa.int16(): "SMALLINT",
}

_SCHEMA: Final = "MAP {{{}}}".format(
    ", ".join(
        f"'{field.name}': {{'name': '{field.name}', 'type': '{_TYPES[field.type]}', "
        f"'default_value': {'0' if field.name == 'basis' else 'NULL'}}}"
        for field in STORED_SCHEMA
    )
)
"""The columns of all files, for a store that also has files without a basis, which is 0 for them.
"""


def _name_pattern(timeframe: Timeframe) -> str:
    """Return the regular expression of a timeframe's file names."""
    return f"/{'[0-9]{4}' if timeframe.is_yearly_filed else ALL}[.]parquet$"


def _allowed(name: str, refused: Mapping[Path, str], ranged: StoreLayout | None = None) -> str:
    """Return a condition that raises for a file that may not be read, and is true for others.

    ``ranged`` is the store whose placeholders are among them: they are left out.
    """
    branches = ""
    for path, why in refused.items():
        error = _quoted(f"{REFUSED}{path}: {why}")
        branches += f"WHEN filename = {_quoted(path.as_posix())} THEN error({error}) "
    branches += f"WHEN regexp_matches(filename, {name}) THEN true "
    for path in placeholder_files(ranged) if ranged else ():
        branches += f"WHEN filename = {_quoted(path.as_posix())} THEN false "
    odd = f"error({_quoted(REFUSED)} || filename || ': it is no file of the store')"
    return f"CASE {branches}ELSE {odd} END"


def _checked(value: str) -> str:
    """Return SQL for the value where the macro's arguments can name a series, else for an error."""
    return f"""CASE
        WHEN NOT regexp_full_match(of_symbol, '[A-Za-z0-9._-]+')
            THEN error('series(symbol, timeframe): no symbol can be ' || of_symbol)
        WHEN of_timeframe NOT IN ({_quoted(*Timeframe)})
            THEN error('series(symbol, timeframe): no timeframe is ' || of_timeframe)
        ELSE {value} END"""


def literal_glob(path: Path) -> str:
    """Return a glob that matches a path alone, whatever characters it has."""
    return re.sub(r"[\[*?]", r"[\g<0>]", path.as_posix())


def _quoted(*texts: str) -> str:
    return ", ".join("'" + text.replace("'", "''") + "'" for text in texts)
