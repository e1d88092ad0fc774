"""Sources → examples → tokens → batches. Only pipeline.py and the reader of TensorFlow Datasets use tensorflow."""
