"""Diagnosis of a gateway's set-up: making the checks, and their results."""
