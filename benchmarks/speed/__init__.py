"""Benchmark of speed, see `python -m benchmarks.speed --help`."""
