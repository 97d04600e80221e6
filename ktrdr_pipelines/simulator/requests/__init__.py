"""How a simulated gateway answers requests: rules, durations, refusals, bars."""
