"""This engine against the way the reports trained, in one process on one machine: `python -m benchmarks`."""
