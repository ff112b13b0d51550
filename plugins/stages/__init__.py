"""Built-in stages, one concept per file."""
