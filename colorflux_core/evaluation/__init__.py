"""Evaluation of colorizations: benchmark sets, metrics, judges, reports and user studies."""
