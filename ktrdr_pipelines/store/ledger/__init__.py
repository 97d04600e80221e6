"""The ledger: one SQLite database, a module a group of tables."""
