"""Benchmarks: the cost of a request against peers and against a bare C server. See README.md."""
