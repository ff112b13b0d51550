"""Built-in formats, one concept per file."""
