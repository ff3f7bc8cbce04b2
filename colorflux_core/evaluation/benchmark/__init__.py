"""Benchmark sets, and the colorizations of them that are compared."""
