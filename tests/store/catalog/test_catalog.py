"""The catalog: every object exists, every bar is in it, and no bar closes too early."""

# ruff: noqa: S608  (queries are made of the names that are tested)

import json
import shutil
from contextlib import closing
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import duckdb
import pytest

from ktrdr_pipelines.domain.bars import empty_bars, micros
from ktrdr_pipelines.domain.calendars.session_extension import LateBar
from ktrdr_pipelines.domain.calendars.sessions import monday_of
from ktrdr_pipelines.domain.coverage import Coverage, Emptiness, ProofKind
from ktrdr_pipelines.domain.intervals import Interval
from ktrdr_pipelines.domain.planning.empty_ranges import Statement, StatementKind
from ktrdr_pipelines.domain.planning.gaps import Gap, GapReason
from ktrdr_pipelines.domain.timeframes import Timeframe
from ktrdr_pipelines.errors import DiskError, StoreError, UsageError
from ktrdr_pipelines.store.bars.bar_store import BarStore
from ktrdr_pipelines.store.catalog.catalog import connect_catalog, query_catalog, rebuild_catalog
from ktrdr_pipelines.store.layout import StoreLayout, create_store
from ktrdr_pipelines.store.ledger.ledger import Ledger
from ktrdr_pipelines.store.ledger.request_audit import RequestRecord
from ktrdr_pipelines.store.maintenance.repair import repair

NOW = datetime(2024, 6, 3, 20, tzinfo=UTC)
OPEN = datetime(2024, 6, 3, 13, 30, tzinfo=UTC)
COLUMNS = [
    *("symbol", "timeframe", "ts", "session_date", "open", "high", "low", "close"),
    *("volume", "average", "bar_count", "closes_at"),
]
VIEWS = ["bars", *(f"bars_{timeframe}" for timeframe in Timeframe)]


def _rows(layout: StoreLayout, sql: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = query_catalog(layout, sql).to_pylist()
    return rows


def _one(layout: StoreLayout, sql: str) -> Any:
    ((value,),) = [row.values() for row in _rows(layout, sql)]
    return value


def test_an_empty_store_has_every_object(layout: StoreLayout) -> None:
    """Without bars all views and the macro return no rows, with the right columns."""
    rebuild_catalog(layout, [], NOW)
    for source in [*VIEWS, "series('AAPL', '1m')"]:
        answer = query_catalog(layout, f"SELECT * FROM {source}")
        assert answer.column_names == COLUMNS
        assert answer.num_rows == 0
    for table in ("sessions", "instruments", "coverage", "gaps", "statements", "requests"):
        assert query_catalog(layout, f"SELECT * FROM {table}").num_rows == 0


def test_columns_have_one_type_in_all_views(
    layout: StoreLayout, store: BarStore, make: Any
) -> None:
    """Views with and without files can be joined and united."""
    series = make.series()
    make.save(store, series, make.run(series, OPEN, 3))
    rebuild_catalog(layout, [series.instrument], NOW)
    kinds = [
        [(row["column_name"], row["column_type"]) for row in _rows(layout, f"DESCRIBE FROM {view}")]
        for view in (*VIEWS, "series('AAPL', '1m')")
    ]
    assert dict(kinds[0]) == {
        **dict.fromkeys(("symbol", "timeframe"), "VARCHAR"),
        **dict.fromkeys(("ts", "closes_at"), "TIMESTAMP WITH TIME ZONE"),
        **dict.fromkeys(("open", "high", "low", "close", "volume", "average"), "DOUBLE"),
        "session_date": "DATE",
        "bar_count": "INTEGER",
    }
    assert all([name for name, _ in kind] == COLUMNS for kind in kinds)
    assert all(dict(kind) == dict(kinds[0]) for kind in kinds)


def test_views_and_macro_return_the_same_bars(
    layout: StoreLayout, store: BarStore, make: Any
) -> None:
    """The macro, the view of a timeframe and the view of all give the same bars."""
    universe = []
    for symbol in ("AAPL", "MSFT"):
        for timeframe in Timeframe:
            series = make.series(timeframe, symbol)
            universe.append(series.instrument)
            first = OPEN if timeframe.is_intraday else datetime(2024, 5, 6, tzinfo=UTC)
            make.save(store, series, make.run(series, first, 6, timeframe.seconds))
    rebuild_catalog(layout, universe, NOW)
    for timeframe in Timeframe:
        where = f"WHERE symbol = 'AAPL' AND timeframe = '{timeframe}' ORDER BY ts"
        answers = [
            query_catalog(layout, f"SELECT * FROM {source} {where}")
            for source in (f"series('AAPL', '{timeframe}')", f"bars_{timeframe}", "bars")
        ]
        assert answers[0].num_rows == 6
        assert answers[0].equals(answers[1])
        assert answers[0].equals(answers[2])
        assert set(answers[0]["close"].to_pylist()) == {float(timeframe.seconds)}
        stored = store.read(make.series(timeframe))
        assert answers[0]["ts"].to_pylist() == stored["ts"].to_pylist()
    assert _one(layout, "SELECT count(*) FROM bars") == 6 * 2 * len(Timeframe)


def test_symbols_stay_as_written(layout: StoreLayout, store: BarStore, make: Any) -> None:
    """No symbol turns into a number, a boolean or NULL."""
    symbols = {"ON", "NO", "0700", "1E5", "nan", "INF", "true", "AAPL.ETH", "BRK-B", "a_b", "null"}
    universe = []
    for symbol in sorted(symbols):
        series = make.series(symbol=symbol)
        universe.append(series.instrument)
        make.save(store, series, make.run(series, OPEN, 2))
    rebuild_catalog(layout, universe, NOW)
    for source in ("bars_1m", "bars", "instruments", "coverage"):
        found = [row["symbol"] for row in _rows(layout, f"SELECT symbol FROM {source}")]
        assert set(found) == symbols
    for source, where in (("series('{0}', '1m')", "true"), ("bars_1m", "symbol = '{0}'")):
        select = f"SELECT '{{0}}', symbol, count(*) FROM {source} WHERE {where} GROUP BY ALL"
        rows = _rows(layout, " UNION ALL ".join(select.format(symbol) for symbol in symbols))
        assert sorted(tuple(row.values()) for row in rows) == [
            (symbol, symbol, 2) for symbol in sorted(symbols)
        ]


def test_coverage_has_the_kind_of_each_proof(
    layout: StoreLayout, store: BarStore, make: Any
) -> None:
    """In its last column; ranges with bars have none."""
    series = make.series()
    make.save(store, series, make.run(series, OPEN, 3))
    identity = store.identity(series)
    assert identity is not None
    for day, kind in enumerate(ProofKind, start=1):
        start = OPEN - timedelta(days=7 * day)
        proof = Emptiness(Interval(start, start + timedelta(hours=1)), NOW, kind, "a note")
        store.save(series, identity, empty_bars(), Coverage(empty=(proof,)))
    rebuild_catalog(layout, [series.instrument], NOW)
    columns = [row["column_name"] for row in _rows(layout, "DESCRIBE FROM coverage")]
    assert columns == [
        *("symbol", "timeframe", "verdict", "starts", "ends", "proved_at", "expires_at", "kind")
    ]
    found = _rows(layout, "SELECT verdict, kind FROM coverage ORDER BY starts DESC")
    assert [(row["verdict"], row["kind"]) for row in found] == [
        ("bars", None),
        *(("empty", str(kind)) for kind in ProofKind),
    ]


def test_statements_can_be_queried(layout: StoreLayout, store: BarStore) -> None:
    """Void ones too, with the time of each."""
    part = Interval(OPEN, OPEN + timedelta(hours=7))
    said = [
        Statement(part, StatementKind.EMPTY, "1h", NOW - timedelta(days=2), "a", controlled=True),
        Statement(part, StatementKind.AROUND, "1d", NOW - timedelta(days=1), "b"),
    ]
    store.ledger.statements.record("AAPL", "gate:1", said, NOW)
    store.ledger.statements.record("MSFT", "gate:2", [replace(said[0], controlled=False)], NOW)
    start, end = NOW - timedelta(days=3), NOW
    store.ledger.statements.void_empty("gate:1", start, end, NOW)
    rebuild_catalog(layout, [], NOW)
    rows = _rows(layout, "SELECT * FROM statements ORDER BY symbol, said_at")
    assert [row["symbol"] for row in rows] == ["AAPL", "AAPL", "MSFT"]
    assert rows[0] == {
        "symbol": "AAPL",
        "kind": "empty",
        "timeframe": "1h",
        "starts": part.start,
        "ends": part.end,
        "said_at": NOW - timedelta(days=2),
        "controlled": True,
        "voided_at": NOW,
    }
    assert (rows[1]["kind"], rows[1]["timeframe"], rows[1]["voided_at"]) == ("around", "1d", None)
    assert (rows[2]["controlled"], rows[2]["voided_at"]) == (False, None)


def test_repair_restores_rows_that_another_program_has_changed(
    layout: StoreLayout, make: Any
) -> None:
    """The comments by which a rebuild knows a table stay, so repair keeps nothing of it."""
    repair(layout, [make.instrument()], NOW)
    with closing(duckdb.connect(str(layout.catalog))) as shell:
        shell.execute("DELETE FROM instruments")
    assert not _rows(layout, "FROM instruments")
    repair(layout, [make.instrument()], NOW)
    assert _rows(layout, "FROM instruments")


def test_a_rebuild_keeps_no_object_of_another_program_or_version(layout: StoreLayout) -> None:
    """With its comment, no query would take the catalog for the present one again."""
    rebuild_catalog(layout, [], NOW)
    with closing(duckdb.connect(str(layout.catalog))) as shell:
        shell.execute("CREATE VIEW other AS SELECT 1; COMMENT ON VIEW other IS 'of another'")
    rebuild_catalog(layout, [], NOW)
    with pytest.raises(UsageError, match="other"):
        query_catalog(layout, "FROM other")


@pytest.mark.parametrize("reason", ["unconfirmed", "contradicted", "sparse"])
def test_gaps_have_reasons(layout: StoreLayout, make: Any, reason: str) -> None:
    """Reason, detail and the time of the next request are columns."""
    series = make.series()
    gap = Gap(
        Interval(OPEN, OPEN + timedelta(hours=1)), 1, 60, GapReason(reason), "why", NOW
    )  # fmt: skip
    rebuild_catalog(layout, [series.instrument], NOW, gaps=[(series, gap)])
    (row,) = _rows(layout, "SELECT reason, detail, next_try_at FROM gaps")
    assert row == {"reason": reason, "detail": "why", "next_try_at": NOW}


CALENDARS = [("AAPL", "XNYS.RTH"), ("AAPL.ETH", "XNYS.ETH"), ("EURUSD", "FX")]
SPANS = [
    (date(2024, 3, 8), date(2024, 3, 12)),
    (date(2024, 11, 27), date(2024, 12, 3)),
    (date(2024, 12, 30), date(2025, 1, 3)),
]
"""A change to summer time; a half day; the turn of a year."""


@pytest.mark.parametrize("timeframe", list(Timeframe))
def test_no_bar_closes_before_its_end(
    layout: StoreLayout, store: BarStore, make: Any, timeframe: Timeframe
) -> None:
    """closes_at is never earlier than the true end; it is the true end but for two cases.

    Those two: a short first bar below an hour is given its full length, and the end of a day or
    week without a calendar is late.
    """
    truth: dict[tuple[str, datetime], datetime] = {}
    universe = []
    for symbol, calendar in CALENDARS:
        series = make.series(timeframe, symbol, calendar)
        universe.append(series.instrument)
        for first, end in SPANS:
            weeks = (monday_of(first), monday_of(end) + timedelta(days=7))
            ends = make.true_ends(series, *(weeks if timeframe is Timeframe.W1 else (first, end)))
            make.save(store, series, make.bars(series, sorted(ends)))
            truth |= {(symbol, ts): closes_at for ts, closes_at in ends.items()}
    rebuild_catalog(layout, universe, NOW)
    by_path = [f"SELECT * FROM series('{symbol}', '{timeframe}')" for symbol, _ in CALENDARS]
    for sql in (f"SELECT * FROM bars_{timeframe}", " UNION ALL ".join(by_path)):
        found = {(row["symbol"], row["ts"]): row["closes_at"] for row in _rows(layout, sql)}
        assert found.keys() == truth.keys()
        early = {key: found[key] for key in truth if found[key] < truth[key]}
        assert early == {}
        late = {key for key in truth if found[key] > truth[key]}
        expected = {
            (symbol, ts)
            for (symbol, ts), end in truth.items()
            if timeframe.seconds < 3600 and end - ts < timeframe.length
        }
        assert late <= expected


def test_without_a_calendar_closes_at_is_late(
    layout: StoreLayout, store: BarStore, make: Any
) -> None:
    """Outside the universe bars close after their full length, days and weeks later still."""
    monday = datetime(2024, 6, 3, tzinfo=UTC)
    for timeframe in Timeframe:
        series = make.series(timeframe)
        first = OPEN if timeframe.is_intraday else monday
        make.save(store, series, make.run(series, first, 1))
    rebuild_catalog(layout, [], NOW)
    for source in ("bars", *(f"series('AAPL', '{timeframe}')" for timeframe in Timeframe)):
        found = {row["timeframe"]: row["closes_at"] for row in _rows(layout, f"FROM {source}")}
        late = {"1d": monday + timedelta(days=2), "1w": monday + timedelta(days=8)}
        for timeframe, closes_at in found.items():
            assert closes_at == late.get(timeframe, OPEN + Timeframe(timeframe).length)


def test_a_bar_after_the_close_is_not_capped(
    layout: StoreLayout, store: BarStore, make: Any
) -> None:
    """A bar outside the sessions closes after its full length."""
    series = make.series()
    late = datetime(2024, 6, 3, 20, 5, tzinfo=UTC)
    make.save(store, series, make.run(series, late, 1))
    rebuild_catalog(layout, [series.instrument], NOW)
    for source in ("bars_1m", "series('AAPL', '1m')"):
        assert _one(layout, f"SELECT closes_at FROM {source}") == late + timedelta(minutes=1)


def test_the_last_week_of_the_calendar_is_whole(
    layout: StoreLayout, store: BarStore, make: Any
) -> None:
    """Sessions are listed in whole weeks, so no week seems to close on a Wednesday."""
    series = make.series()
    for days in (0, 2, 6):
        rebuild_catalog(layout, [series.instrument], NOW + timedelta(days=days))
        last = _one(layout, "SELECT max(session_date) FROM sessions")
        assert last.weekday() >= 3
        assert last >= (NOW + timedelta(days=days + 365)).date() - timedelta(days=4)
    first = _one(layout, "SELECT min(session_date) FROM sessions")
    assert first <= series.instrument.start
    assert _one(layout, "SELECT DISTINCT calendar FROM sessions") == "XNYS.RTH"


def test_sessions_reach_back_to_the_first_bar(
    layout: StoreLayout, store: BarStore, make: Any
) -> None:
    """Bars older than the universe's start have their session closes too."""
    series = make.series(Timeframe.D1)
    day = datetime(2001, 9, 17, tzinfo=UTC)
    make.save(store, series, make.run(series, day, 1))
    rebuild_catalog(layout, [series.instrument], NOW)
    assert _one(layout, "SELECT closes_at FROM bars") == datetime(2001, 9, 17, 20, tzinfo=UTC)


def test_small_tables_can_be_queried(
    layout: StoreLayout, store: BarStore, ledger: Ledger, make: Any
) -> None:
    """Instruments, coverage with verdicts, and the newest requests."""
    series = make.series()
    bars = make.run(series, OPEN, 2)
    make.save(store, series, bars)
    proof = make.empty(OPEN + timedelta(hours=1), OPEN + timedelta(hours=2), NOW)
    store.save(series, make.identity(series), make.bars(series, []), proof)
    record = RequestRecord(
        *("AAPL|1m", 265598, "TRADES", "127.0.0.1:4002", "hash", None, "1 D", NOW, 0.5, "bars"),
        rows=2,
    )
    ledger.requests.record(record)
    rebuild_catalog(layout, [series.instrument], NOW)
    (instrument,) = _rows(layout, "FROM instruments")
    assert instrument["timeframes"] == list(Timeframe)
    assert (instrument["what_to_show"], instrument["use_rth"]) == ("TRADES", True)
    covered, empty = _rows(layout, "FROM coverage ORDER BY starts")
    assert (covered["verdict"], covered["starts"]) == ("bars", OPEN)
    assert (covered["ends"], covered["expires_at"]) == (OPEN + timedelta(minutes=2), None)
    assert (empty["verdict"], empty["proved_at"]) == ("empty", NOW)
    assert empty["expires_at"] == proof.empty[0].expires_at
    (request,) = _rows(layout, "FROM requests")
    assert (request["sent_at"], request["rows"], request["series"]) == (NOW, 2, "AAPL|1m")


def test_a_symbol_with_sessions_of_its_own_has_a_calendar_of_its_own(
    layout: StoreLayout, store: BarStore, ledger: Ledger, make: Any
) -> None:
    """Its bars after the close are closed by its own sessions; others keep the shared ones."""
    series = make.series()
    other = replace(series.instrument, symbol="MSFT")
    close = OPEN + timedelta(hours=6, minutes=30)
    days = [close + timedelta(days=number) for number in range(3)]
    late = {one.date(): LateBar(micros(one), micros(one + timedelta(minutes=15))) for one in days}
    ledger.late_bars.record("AAPL", late)
    make.save(store, series, make.run(series, OPEN, 2))
    rebuild_catalog(layout, [series.instrument, other], NOW)
    rows = _rows(layout, "FROM instruments ORDER BY symbol")
    assert [one["calendar"] for one in rows] == ["XNYS.RTH AAPL", "XNYS.RTH"]
    sessions = _rows(
        layout, f"FROM sessions WHERE session_date = '{OPEN.date()}' ORDER BY calendar"
    )
    assert [one["closes_at"] - close for one in sessions] == [
        timedelta(0),
        timedelta(minutes=15),
    ]


def test_older_shells_can_read_the_file(layout: StoreLayout, store: BarStore, make: Any) -> None:
    """The file has the storage format of DuckDB 1.0, whatever version wrote it."""
    series = make.series()
    make.save(store, series, make.run(series, OPEN, 2))
    rebuild_catalog(layout, [series.instrument], NOW)
    tags = _one(layout, "SELECT tags FROM duckdb_databases() WHERE database_name = 'ktrdr'")
    assert dict(tags)["storage_version"] == "v1.0.0+"
    sql = _one(layout, "SELECT string_agg(sql, ' ') FROM duckdb_views() WHERE NOT internal")
    assert "allow_empty" not in sql


def test_a_shell_opens_the_file_by_path(layout: StoreLayout, store: BarStore, make: Any) -> None:
    """A plain connection needs nothing of this package, in any working directory."""
    series = make.series()
    make.save(store, series, make.run(series, OPEN, 2))
    rebuild_catalog(layout, [series.instrument], NOW)
    with duckdb.connect(str(layout.catalog), read_only=True) as shell:
        assert shell.execute("SELECT count(*) FROM series('AAPL', '1m')").fetchall() == [(2,)]
        assert shell.execute("SELECT symbol FROM bars LIMIT 1").fetchall() == [("AAPL",)]
    names = sorted(path.name for path in layout.root.iterdir())
    assert names == ["bars", "epochs", "ktrdr.duckdb", "state", "store.json"]


def test_a_folder_with_wild_characters_can_be_queried(tmp_path: Path, make: Any) -> None:
    """Brackets, stars and quotes in the data folder's name match themselves."""
    layout = create_store(tmp_path / "it's [my] data*")
    store = BarStore(layout, Ledger(layout.ledger))
    series = make.series()
    make.save(store, series, make.run(series, OPEN, 2))
    store.ledger.close()
    rebuild_catalog(layout, [series.instrument], NOW)
    for source in ("bars", "bars_1m", "series('AAPL', '1m')"):
        assert _one(layout, f"SELECT count(*) FROM {source}") == 2


def test_a_rebuild_fixes_the_catalog_of_a_moved_folder(
    layout: StoreLayout, store: BarStore, make: Any
) -> None:
    """Views name absolute paths; a rebuild names the new ones."""
    series = make.series()
    make.save(store, series, make.run(series, OPEN, 2))
    rebuild_catalog(layout, [series.instrument], NOW)
    store.ledger.close()
    moved = StoreLayout(layout.root.rename(layout.root.with_name("moved")))
    with pytest.raises(StoreError, match=r"moved or copied.*ktrdr repair"):
        query_catalog(moved, "FROM bars_1m")
    rebuild_catalog(moved, [series.instrument], NOW)
    assert _one(moved, "SELECT count(*) FROM bars_1m") == 2


@pytest.mark.parametrize("name", ["it's [here]", "100 % *"])
def test_a_copied_folder_never_returns_the_bars_of_the_first(
    tmp_path: Path, make: Any, name: str
) -> None:
    """The old paths still exist, so the copy is refused until it is rebuilt."""
    first = create_store(tmp_path / name)
    series = make.series()
    with closing(BarStore(first, Ledger(first.ledger)).ledger) as ledger:
        make.save(BarStore(first, ledger), series, make.run(series, OPEN, 2))
    rebuild_catalog(first, [series.instrument], NOW)
    copied = StoreLayout(tmp_path / "copied")
    shutil.copytree(first.root, copied.root)
    with pytest.raises(StoreError, match="moved or copied"):
        query_catalog(copied, "FROM bars_1m")
    assert _one(first, "SELECT count(*) FROM bars") == 2
    rebuild_catalog(copied, [series.instrument], NOW)
    assert _one(copied, "SELECT count(*) FROM bars") == 2


@pytest.fixture(scope="module")
def queried(make: Any, tmp_path_factory: pytest.TempPathFactory) -> StoreLayout:
    """Return a store of two bars, for queries that change nothing."""
    layout = create_store(tmp_path_factory.mktemp("queried"))
    with closing(Ledger(layout.ledger)) as ledger:
        series = make.series()
        make.save(BarStore(layout, ledger), series, make.run(series, OPEN, 2))
    rebuild_catalog(layout, [series.instrument], NOW)
    return layout


@pytest.mark.parametrize(
    ("sql", "message"),
    [
        ("SELEC 1", "syntax error"),
        ("SELECT * FROM nope", "nope does not exist"),
        ("SELECT 'x'::INTEGER", "Could not convert"),
        ("FROM series('NOPE', '1m')", "symbol=NOPE/timeframe=1m.*ktrdr status"),
        ("FROM series('*', '1m')", r"no symbol can be \*"),
        ("FROM series('../AAPL', '1m')", "no symbol can be"),
        ("FROM series('AAPL', '2m')", "no timeframe is 2m"),
        ("CREATE TABLE x AS SELECT 1", "read-only"),
        ("DELETE FROM sessions", "read-only"),
        ("SELECT * FROM layout", "layout does not exist"),
    ],
)
def test_an_invalid_query_is_an_error_of_usage(
    queried: StoreLayout, sql: str, message: str
) -> None:
    """With DuckDB's message."""
    with pytest.raises(UsageError, match=rf"(?s){message}"):
        query_catalog(queried, sql)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("series('*', '1m')", r"no symbol can be \*"),
        ("series('AAPL', '7m')", "no timeframe is 7m"),
        ("(SELECT ts FROM series('AAPL', '1M'))", "no timeframe is 1M"),
    ],
)
def test_an_empty_store_refuses_what_names_no_series(
    layout: StoreLayout, source: str, message: str
) -> None:
    """A typing error is reported before the first bar is loaded, too."""
    rebuild_catalog(layout, [], NOW)
    with pytest.raises(UsageError, match=message):
        query_catalog(layout, f"SELECT count(*) FROM {source}")


def test_an_empty_query_returns_no_columns(layout: StoreLayout) -> None:
    """No statement at all is no error."""
    rebuild_catalog(layout, [], NOW)
    assert query_catalog(layout, "").num_columns == 0


def test_a_missing_catalog_hints_at_repair(layout: StoreLayout) -> None:
    """Before the first rebuild; a damaged one likewise."""
    with pytest.raises(StoreError, match=r"no catalog.*ktrdr repair"):
        connect_catalog(layout)
    layout.catalog.write_bytes(b"junk" * 10_000)
    with pytest.raises(StoreError, match=r"cannot read the catalog.*ktrdr repair"):
        query_catalog(layout, "SELECT 1")


def test_an_open_reader_keeps_its_catalog_and_a_new_one_gets_the_newest(
    layout: StoreLayout, make: Any
) -> None:
    """DuckDB's sharing of open files does not hand out an old catalog."""
    rebuild_catalog(layout, [], NOW)
    with connect_catalog(layout) as old:
        rebuild_catalog(layout, [make.instrument()], NOW)
        with connect_catalog(layout) as new:
            count = "SELECT count(*) FROM instruments"
            assert old.execute(count).fetchall() == [(0,)]
            assert new.execute(count).fetchall() == [(1,)]


def test_a_log_that_a_shell_left_is_removed(layout: StoreLayout) -> None:
    """A write-ahead log belongs to the old file."""
    rebuild_catalog(layout, [], NOW)
    log = layout.catalog.with_name("ktrdr.duckdb.wal")
    log.write_bytes(b"junk" * 100)
    rebuild_catalog(layout, [], NOW)
    assert not log.exists()
    assert query_catalog(layout, "FROM bars").num_rows == 0


def test_a_failed_rebuild_keeps_the_old_catalog(
    layout: StoreLayout, store: BarStore, make: Any
) -> None:
    """The old catalog can be queried, and no file is left over."""
    series = make.series()
    make.save(store, series, make.run(series, OPEN, 2))
    rebuild_catalog(layout, [series.instrument], NOW)
    names = sorted(layout.root.iterdir())
    layout.lock("catalog").unlink()
    layout.lock("catalog").mkdir()
    with pytest.raises(DiskError, match=r"catalog\.lock"):
        rebuild_catalog(layout, [series.instrument], NOW)
    assert _one(layout, "SELECT count(*) FROM bars") == 2
    assert sorted(layout.root.iterdir()) == names


def test_rows_can_be_written_as_json(layout: StoreLayout, store: BarStore, make: Any) -> None:
    """A query returns plain Arrow, its times in UTC."""
    series = make.series()
    make.save(store, series, make.run(series, OPEN, 1))
    rebuild_catalog(layout, [series.instrument], NOW)
    answer = query_catalog(layout, "SELECT ts, closes_at FROM bars")
    assert json.dumps(answer.to_pylist(), default=str) == json.dumps(
        [{"ts": "2024-06-03 13:30:00+00:00", "closes_at": "2024-06-03 13:31:00+00:00"}]
    )
