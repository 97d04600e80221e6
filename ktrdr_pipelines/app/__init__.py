"""Use cases: from settings to a store, its universe and what loads it; setting up a store."""
