"""How a simulated gateway responds to requests: rules, durations, refusals, bars."""
