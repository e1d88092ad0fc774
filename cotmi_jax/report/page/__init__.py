"""One HTML page of a study or of evaluated runs."""
