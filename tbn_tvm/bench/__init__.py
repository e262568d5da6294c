"""Benchmarks: us and what a user would run instead, side by side in one process."""
