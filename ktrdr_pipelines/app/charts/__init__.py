"""Images of the store: bars of a series, and the coverage of many."""
