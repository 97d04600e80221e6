"""Services that REST and Python use: the gateway's, the gap filler's, and the system's status."""
