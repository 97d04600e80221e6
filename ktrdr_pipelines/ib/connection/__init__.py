"""One connection to a gateway: client ids, pending requests, the gateway's state."""
