"""A simulated gateway with the IB socket protocol, for synthetic or recorded bars."""
