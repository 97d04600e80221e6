"""Market data of a simulated gateway: listings, hours, prices, recordings."""
