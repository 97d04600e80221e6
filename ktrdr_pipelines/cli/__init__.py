"""The ktrdr command line: parse, call, render."""
