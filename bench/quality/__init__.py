"""Measure spot edits, their variants and rival methods on held-out scenes with a known truth."""
