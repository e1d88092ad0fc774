"""Objectives: a batch and the student's outputs in, named (sum, weight) terms out."""
