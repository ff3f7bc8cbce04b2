"""Training data: the manifest, pictures cropped from its photos, and the order of the rows."""
