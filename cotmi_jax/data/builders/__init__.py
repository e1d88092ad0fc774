"""Builders of TensorFlow Datasets, for `tfds build`; each in a folder that is named like its set."""
