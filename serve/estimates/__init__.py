"""Time remaining, estimated from the jobs that have finished."""
