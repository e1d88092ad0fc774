"""The training loop and what it needs; the only room that uses orbax (in checkpoint.py)."""
