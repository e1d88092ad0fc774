"""Studies: many training runs from one file, each trained and evaluated once, by any number of workers."""
