"""Measurements of the numbers in the documentation; the docstring of each file has its command."""
