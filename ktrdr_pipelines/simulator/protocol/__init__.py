"""What a simulated gateway reads and writes."""
