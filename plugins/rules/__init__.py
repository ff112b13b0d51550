"""Built-in rules, one concept per file."""
