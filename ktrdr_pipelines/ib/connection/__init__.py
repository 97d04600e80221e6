"""One connection to a gateway: client ids, open requests, what it says of itself."""
