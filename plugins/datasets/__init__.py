"""Built-in datasets, one concept per file."""
