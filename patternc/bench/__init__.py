"""Benchmarks: `patternc bench layout|cpu|attention`."""
