"""Planning: what is missing, what to request next, and what responses prove."""
