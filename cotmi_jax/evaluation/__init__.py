"""Scores of a trained student against gold labels."""
