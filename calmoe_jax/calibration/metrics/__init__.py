"""Metrics of calibration: scores, bins, errors."""
