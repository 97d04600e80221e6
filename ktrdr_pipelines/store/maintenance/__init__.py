"""Repairing a store, checking its files, moving symbols."""
