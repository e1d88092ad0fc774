"""ANLI with the reasons that its annotators gave, as a TensorFlow Datasets builder."""
