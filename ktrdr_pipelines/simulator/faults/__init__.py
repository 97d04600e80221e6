"""What can go wrong at a simulated gateway, and the fault file that orders it."""
