"""Training data: the manifest, pictures made from its photos, and the order of the rows."""
