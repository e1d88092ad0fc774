"""Measurements behind the numbers in the documentation; each file says how to run it."""
