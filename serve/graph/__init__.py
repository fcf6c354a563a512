"""The DAG, its stages, and what a replica and its callers need."""
