"""Benchmarks: run from the root of a checkout with `python -m benchmarks.NAME`. Not packaged."""
