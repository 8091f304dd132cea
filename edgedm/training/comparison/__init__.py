"""A comparison of all methods on a small model: rows, cells (a row and a seed), measures, report.

`scripts/bench_methods.py` runs it.
"""
