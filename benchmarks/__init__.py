"""Benchmarks: how long, against what, on which machine. `python -m benchmarks --help` lists the commands."""
