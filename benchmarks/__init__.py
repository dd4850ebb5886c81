"""Measurements: ratios in one run against a named rival, never part of the tests."""
