"""Measurements: ratios in one run against named rivals. The tests see that they run, never how fast."""
