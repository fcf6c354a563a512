"""One video made by several processes."""
