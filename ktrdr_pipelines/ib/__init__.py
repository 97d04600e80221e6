"""The client of an Interactive Brokers gateway: connections, request budget, messages."""
