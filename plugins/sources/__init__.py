"""Built-in sources, one concept per file."""
