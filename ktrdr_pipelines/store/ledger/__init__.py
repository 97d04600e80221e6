"""The ledger: one SQLite database, with a module for each group of tables."""
