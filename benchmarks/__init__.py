"""How fast the project is, against a peer and against a loop written by hand; `python -m benchmarks --help`."""
