"""The Dagster code location: one file a Dagster concept."""
