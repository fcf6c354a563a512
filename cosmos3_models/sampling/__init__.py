"""Noise schedules, the solver, and the denoising loop."""
