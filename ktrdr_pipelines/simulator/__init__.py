"""A gateway of its own: it speaks the IB wire protocol and answers from a market of bars."""
