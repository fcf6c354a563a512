"""Stored jobs: the table, the media store, and the runner that works on them."""
