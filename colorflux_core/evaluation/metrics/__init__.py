"""Metrics of colorized photos."""
