"""What goes wrong at a simulated gateway, and how it is told."""
