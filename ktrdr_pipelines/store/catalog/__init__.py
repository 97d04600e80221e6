"""The DuckDB catalog: its views and tables, and which queries may run."""
