"""The training job, its loop, step and state, and what they need of optimizers, signals and measurement."""
