"""Data sets in the formats their authors publish."""
