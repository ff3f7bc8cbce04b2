"""DeQA-Score, which runs in a separate virtual environment: see serve.py."""
