"""Benchmarks: one file per operation, each with an outside baseline and an accuracy beside the time."""
