"""The work on one series: plan, request, evaluate, save."""
