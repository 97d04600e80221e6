"""Trading sessions: their sources, and which bars are expected in them."""
