"""ANLI with the reasons its authors were asked for, as a TensorFlow Datasets set."""
