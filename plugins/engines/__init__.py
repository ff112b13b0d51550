"""Built-in engines, one concept per file."""
