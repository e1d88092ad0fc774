"""The data sets of the Distilling Step-by-Step release as a TensorFlow Datasets builder."""
