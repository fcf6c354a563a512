"""Memory and operations that a request needs."""
