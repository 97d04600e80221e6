"""The faults that a simulated gateway can inject, their effects, and the fault file."""
