"""Events of ended jobs, to the URLs that requests name."""
