"""The student: T5 in Flax NNX, its presets, its decoding, and Hugging Face checkpoints in and out."""
