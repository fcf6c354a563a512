"""Encoded files: mp4 and JPEG."""
