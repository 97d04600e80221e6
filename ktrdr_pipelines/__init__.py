"""A complete local store of Interactive Brokers bars: Dagster pipelines, Parquet, DuckDB."""
