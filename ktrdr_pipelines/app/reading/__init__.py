"""Bars for programs: frames of one or many symbols, read by path from the local store."""
