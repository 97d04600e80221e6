"""Storage on disk: bars in Parquet files, the SQLite ledger, the DuckDB catalog."""
