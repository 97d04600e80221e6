"""Damaged stores on the command line: the reports of each command, and the repair."""

import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

DAYS = ("--start", "2024-01-02", "--end", "2024-01-10")


def daily(store: Path, symbol: str = "AAPL") -> Path:
    """Return the file of a symbol's daily bars."""
    return store / "bars" / f"symbol={symbol}" / "timeframe=1d" / "all.parquet"


def change_a_bit(path: Path) -> None:
    """Change one bit of the opening prices."""
    column = pq.read_metadata(path).row_group(0).column(2)
    data = bytearray(path.read_bytes())
    data[column.data_page_offset + column.total_compressed_size // 2] ^= 16
    path.write_bytes(data)


def certificate(ktrdr: Any, symbol: str = "AAPL") -> Any:
    """Return the certificate of a symbol's daily bars."""
    document = ktrdr("verify", symbol, "--json").document
    return next(one for one in document["certificates"] if one["timeframe"] == "1d")


def test_a_changed_bit_is_found_refused_quarantined_and_loaded_again(
    ktrdr: Any, store: Path, gateway: Any, new_budget: Any
) -> None:
    """Verify finds it, queries refuse it, repair quarantines the file, and a load restores it."""
    assert ktrdr("load", "AAPL,MSFT", "1d", *DAYS).code == 0
    digest = certificate(ktrdr)["digest"]
    change_a_bit(daily(store))
    result = ktrdr("verify", "AAPL")
    assert (result.code, "corrupt" in result.out, "all.parquet" in result.err) == (1, True, True)
    result = ktrdr("query", "SELECT count(*) FROM bars")
    assert (result.code, "all.parquet" in result.err, "ktrdr repair" in result.err) == (
        1,
        True,
        True,
    )
    sql = "SELECT count(*) AS n FROM bars WHERE symbol = 'MSFT'"
    assert ktrdr("query", sql, "--json").rows == [{"n": 6}]
    result = ktrdr("repair")
    assert (result.code, "To be loaded again: AAPL 1d" in result.out) == (0, True)
    new_budget()
    assert ktrdr("load", "AAPL", "1d", *DAYS).code == 0
    found = certificate(ktrdr)
    assert (found["sound"], found["bars"], found["digest"]) == (True, 6, digest)
    sql = "SELECT count(*) AS n FROM bars"
    assert ktrdr("query", sql, "--json").rows == [{"n": 12}]


def test_a_price_of_another_program_stops_a_load(ktrdr: Any, store: Path, gateway: Any) -> None:
    """Nothing is overwritten, and the error names ktrdr repair."""
    ktrdr("load", "AAPL", "1d", "--start", "2024-01-02", "--end", "2024-01-06")
    path = daily(store)
    table = pq.read_table(path, partitioning=None)
    closes = pa.array([*table["close"].to_pylist()[:-1], table["low"][-1].as_py()])
    place = table.schema.get_field_index("close")
    pq.write_table(table.set_column(place, table.schema.field("close"), closes), path)
    left = path.read_bytes()
    result = ktrdr("load", "AAPL", "1d", *DAYS)
    assert result.code == 1
    assert "other values than were written" in result.err + result.out
    assert "ktrdr repair" in result.err + result.out
    assert path.read_bytes() == left
    assert not certificate(ktrdr)["sound"]


def test_seal_adds_no_digest_to_sealed_files(ktrdr: Any, store: Path, gateway: Any) -> None:
    """Where all files have digests, none is added."""
    ktrdr("load", "AAPL", "1d", *DAYS)
    document = ktrdr("repair", "--seal", "--json").document
    assert (document["sealed"], document["quarantined"]) == ([], [])
    assert "digests" not in ktrdr("repair", "--seal").out


def test_a_query_of_outdated_tables_warns(ktrdr: Any, store: Path, gateway: Any) -> None:
    """It warns only if it names a table; bars are those of the files."""
    ktrdr("load", "AAPL", "1d", *DAYS)
    assert ktrdr("query", "FROM coverage").err == ""
    catalog = store / "ktrdr.duckdb"
    kept, times = catalog.read_bytes(), catalog.stat()
    ktrdr("load", "MSFT", "1d", *DAYS)
    catalog.write_bytes(kept)
    os.utime(catalog, ns=(times.st_atime_ns, times.st_mtime_ns))
    result = ktrdr("query", "SELECT count(*) AS n FROM coverage", "--json")
    assert (result.code, "1 bar file is newer than the catalog" in result.err) == (0, True)
    result = ktrdr("query", "SELECT count(*) AS n FROM bars", "--json")
    assert (result.rows, result.err) == ([{"n": 12}], "")


def test_verify_reads_symbols_outside_the_universe(ktrdr: Any, store: Path, gateway: Any) -> None:
    """Their bars can be queried, so their damage is reported."""
    ktrdr("load", "AAPL,MSFT", "1d", *DAYS)
    universe = store / "universe.yaml"
    kept = [line for line in universe.read_text().splitlines() if "MSFT" not in line]
    universe.write_text("\n".join(kept) + "\n")
    document = ktrdr("verify", "--json").document
    assert document["damaged_others"] == {}
    change_a_bit(daily(store, "MSFT"))
    result = ktrdr("verify")
    assert (result.code, "symbol=MSFT" in result.err) == (1, True)
    assert list(ktrdr("verify", "--json").document["damaged_others"]) == [
        "bars/symbol=MSFT/timeframe=1d/all.parquet"
    ]
    assert ktrdr("query", "SELECT count(*) FROM bars WHERE symbol = 'MSFT'").code == 1


def test_an_instant_out_of_range_is_bad_usage(ktrdr: Any, store: Path) -> None:
    """DuckDB has instants that Python cannot represent."""
    for form in ((), ("--json",), ("--csv",)):
        result = ktrdr("query", "SELECT TIMESTAMPTZ 'infinity' AS at", *form)
        assert (result.code, "VARCHAR" in result.err + result.out) == (2, True)


def test_damaged_imported_bars_are_found_refused_and_quarantined(
    ktrdr: Any, store: Path, tmp_path: Path
) -> None:
    """As those of the gateway; without the repair no query of their series would work again."""
    file = tmp_path / "AAPL_1d.csv"
    file.write_text("date,open,high,low,close\n2024-01-02,1,2,0.5,1.5\n2024-01-03,1,2,0.5,1.6\n")
    assert ktrdr("import-csv", str(file)).code == 0
    assert ktrdr("verify", "--json").document["damaged_others"] == {}
    stored = daily(store / "imported")
    stored.write_bytes(stored.read_bytes()[:-9])
    stored.with_name(".all.parquet.1.tmp").write_text("")
    name = "imported/bars/symbol=AAPL/timeframe=1d/all.parquet"
    assert list(ktrdr("verify", "AAPL", "--json").document["damaged_others"]) == [name]
    assert ktrdr("verify", "MSFT", "--json").document["damaged_others"] == {}
    ktrdr("verify").is_error(1, f"{name}, imported")
    sql = "SELECT count(*) AS n FROM bars WHERE symbol = 'AAPL' AND timeframe = '1d'"
    assert ktrdr("query", sql).code == 1
    result = ktrdr("repair")
    assert "To be loaded again: AAPL 1d, all dates, by `ktrdr import-csv`" in result.out
    assert "imported/quarantine" in result.out
    assert ktrdr("query", sql, "--json").rows == [{"n": 0}]
    assert ktrdr("verify", "--json").document["damaged_others"] == {}
    assert ktrdr("import-csv", str(file), "--json").document["added"] == 2
    assert ktrdr("query", sql, "--json").rows == [{"n": 2}]
