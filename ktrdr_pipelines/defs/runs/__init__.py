"""What Dagster runs do: load windows and tails, tell how they ended, end dead ones."""
