"""Plan, ask, settle, save: what brings bars from a gateway into the store."""
