"""Damage on the command line: what each command says of it, and how a store gets over it."""

import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

DAYS = ("--start", "2024-01-02", "--end", "2024-01-10")


def daily(store: Path, symbol: str = "AAPL") -> Path:
    """Give the file of a symbol's daily bars."""
    return store / "bars" / f"symbol={symbol}" / "timeframe=1d" / "all.parquet"


def change_a_bit(path: Path) -> None:
    """Change one bit of the bars."""
    data = bytearray(path.read_bytes())
    data[len(data) // 4] ^= 16
    path.write_bytes(data)


def certificate(ktrdr: Any, symbol: str = "AAPL") -> Any:
    """Give what verify certifies of a symbol's daily bars."""
    document = ktrdr("verify", symbol, "--json").document
    return next(one for one in document["certificates"] if one["timeframe"] == "1d")


def test_a_changed_bit_is_found_refused_quarantined_and_loaded_again(
    ktrdr: Any, store: Path, gateway: Any, new_budget: Any
) -> None:
    """From verify to a store that is whole again."""
    assert ktrdr("load", "AAPL,MSFT", "1d", *DAYS).code == 0
    digest = certificate(ktrdr)["digest"]
    change_a_bit(daily(store))
    told = ktrdr("verify", "AAPL")
    assert (told.code, "corrupt" in told.out, "all.parquet" in told.err) == (1, True, True)
    told = ktrdr("query", "SELECT count(*) FROM bars")
    assert (told.code, "all.parquet" in told.err, "ktrdr repair" in told.err) == (1, True, True)
    asked = "SELECT count(*) AS n FROM bars WHERE symbol = 'MSFT'"
    assert ktrdr("query", asked, "--json").document == [{"n": 6}]
    told = ktrdr("repair")
    assert (told.code, "To be loaded again: AAPL 1d" in told.out) == (0, True)
    new_budget()
    assert ktrdr("load", "AAPL", "1d", *DAYS).code == 0
    found = certificate(ktrdr)
    assert (found["sound"], found["bars"], found["digest"]) == (True, 6, digest)
    asked = "SELECT count(*) AS n FROM bars"
    assert ktrdr("query", asked, "--json").document == [{"n": 12}]


def test_a_price_of_another_program_stops_a_load(ktrdr: Any, store: Path, gateway: Any) -> None:
    """Nothing is written over it, and the way out is named."""
    ktrdr("load", "AAPL", "1d", "--start", "2024-01-02", "--end", "2024-01-06")
    path = daily(store)
    table = pq.read_table(path, partitioning=None)
    closes = pa.array([*table["close"].to_pylist()[:-1], table["low"][-1].as_py()])
    place = table.schema.get_field_index("close")
    pq.write_table(table.set_column(place, table.schema.field("close"), closes), path)
    left = path.read_bytes()
    told = ktrdr("load", "AAPL", "1d", *DAYS)
    assert told.code == 1
    assert "other values than were written" in told.err + told.out
    assert "ktrdr repair" in told.err + told.out
    assert path.read_bytes() == left
    assert not certificate(ktrdr)["sound"]


def test_seal_says_how_many_files_it_gave_digests(ktrdr: Any, store: Path, gateway: Any) -> None:
    """None, where all have some."""
    ktrdr("load", "AAPL", "1d", *DAYS)
    document = ktrdr("repair", "--seal", "--json").document
    assert (document["sealed"], document["quarantined"]) == ([], [])
    assert "digests" not in ktrdr("repair", "--seal").out


def test_a_query_says_that_tables_are_older_than_bars(
    ktrdr: Any, store: Path, gateway: Any
) -> None:
    """Only where it names one of them; bars are those of the files."""
    ktrdr("load", "AAPL", "1d", *DAYS)
    assert ktrdr("query", "FROM coverage").err == ""
    catalog = store / "ktrdr.duckdb"
    kept, times = catalog.read_bytes(), catalog.stat()
    ktrdr("load", "MSFT", "1d", *DAYS)
    catalog.write_bytes(kept)
    os.utime(catalog, ns=(times.st_atime_ns, times.st_mtime_ns))
    told = ktrdr("query", "SELECT count(*) AS n FROM coverage", "--json")
    assert (told.code, "1 bar file is newer than the catalog" in told.err) == (0, True)
    told = ktrdr("query", "SELECT count(*) AS n FROM bars", "--json")
    assert (told.document, told.err) == ([{"n": 12}], "")


def test_verify_reads_symbols_that_left_the_universe(ktrdr: Any, store: Path, gateway: Any) -> None:
    """Their bars can be queried still, so their damage is told."""
    ktrdr("load", "AAPL,MSFT", "1d", *DAYS)
    universe = store / "universe.yaml"
    kept = [line for line in universe.read_text().splitlines() if "MSFT" not in line]
    universe.write_text("\n".join(kept) + "\n")
    document = ktrdr("verify", "--json").document
    assert document["damaged_others"] == {}
    change_a_bit(daily(store, "MSFT"))
    told = ktrdr("verify")
    assert (told.code, "symbol=MSFT" in told.err) == (1, True)
    assert list(ktrdr("verify", "--json").document["damaged_others"]) == [
        "bars/symbol=MSFT/timeframe=1d/all.parquet"
    ]
    assert ktrdr("query", "SELECT count(*) FROM bars WHERE symbol = 'MSFT'").code == 1


def test_an_instant_out_of_range_is_no_traceback(ktrdr: Any, store: Path) -> None:
    """DuckDB has instants that Python has not."""
    for form in ((), ("--json",), ("--csv",)):
        told = ktrdr("query", "SELECT TIMESTAMPTZ 'infinity' AS at", *form)
        assert (told.code, "VARCHAR" in told.err + told.out) == (2, True)
