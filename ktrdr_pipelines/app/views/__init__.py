"""Documents: what Python callers get, ``--json`` prints and REST serves, in one shape."""
