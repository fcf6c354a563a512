"""The operator's guard: what refuses prompts and frames."""
