"""Sources → Example → tokens → batches; the only room that imports tensorflow (in pipeline.py)."""
