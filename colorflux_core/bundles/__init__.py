"""Bundles: loading the model's parts from files, and a complete model in one folder."""
