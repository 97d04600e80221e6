"""Use cases: open a workspace, set up a store, acknowledge sessions without bars."""
