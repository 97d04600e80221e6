"""The gap engine: what is missing in a store, why, and what is due; it needs no gateway."""
