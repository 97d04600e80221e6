"""What Dagster does by itself: sensors and what each decides."""
