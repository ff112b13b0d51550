"""Built-in rewards, one concept per file."""
