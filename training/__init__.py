"""A very small Cosmos3, trained from scratch on a world of moving shapes; see README.md."""
