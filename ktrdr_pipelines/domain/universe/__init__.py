"""The universe: its entries, their defaults, and edits of its file."""
