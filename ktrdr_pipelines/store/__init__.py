"""Bars and what is known of them on disk: Parquet, ledger, DuckDB catalog."""
