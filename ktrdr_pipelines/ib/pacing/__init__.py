"""The request budget of one gateway, shared by all processes."""
