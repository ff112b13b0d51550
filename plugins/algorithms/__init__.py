"""Built-in algorithms, one concept per file."""
