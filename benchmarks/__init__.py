"""Benchmarks behind the figures in README.md."""
