"""Benchmarks: `patternc bench layout|attention`."""
