"""Dagster runs: loading windows and tails, recording how runs ended, ending dead runs."""
