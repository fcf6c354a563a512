"""Pictures and clips: encoded ones written, foreign ones read."""
