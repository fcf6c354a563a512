"""The mixture-of-transformers."""
