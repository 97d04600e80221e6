"""What is found out of instruments before bars: contracts, sessions, oldest data."""
