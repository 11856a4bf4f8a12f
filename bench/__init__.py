"""Measurements against peers, in one run on the same input."""
