"""Cosmos3 video generation as a Ray Serve deployment graph."""
