"""The HTTP API: routes, bodies, errors, access, and the web page."""
