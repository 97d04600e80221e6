"""Loading: from jobs to bars on disk."""
