"""A gateway of its own: it speaks the IB wire protocol, and answers from bars or from a record."""
