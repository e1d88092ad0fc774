"""Where the files that a run needs, and that this package lacks, are found: for messages about missing files."""

RELEASE = "datasets.zip of github.com/google-research/distilling-step-by-step"
T5_VOCABULARY = "spiece.model of huggingface.co/google/t5-v1_1-base"
