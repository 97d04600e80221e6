"""What is learned of instruments before their bars: contracts, sessions, where data begin."""
