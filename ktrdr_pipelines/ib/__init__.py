"""Everything that talks to an Interactive Brokers gateway."""
