"""Loading bars: from jobs to bars on disk."""
