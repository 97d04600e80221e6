"""What a simulated gateway has bars of: listings, hours, prices, recordings."""
