"""Mutual information: features of a task, and estimators between the features of two tasks. All values in nats."""
