"""Benchmarks of the server against the raw pipeline, on this machine, in one run."""
