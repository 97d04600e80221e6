"""What is missing in a store, and why, without asking a gateway."""
