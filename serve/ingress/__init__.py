"""The entry of the application: HTTP routes and handle calls for other Ray jobs."""
