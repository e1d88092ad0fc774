"""cotmi_jax: distil a large language model's rationales into a small T5, with a mutual-information term."""

__version__ = "0.1.0"
