"""From pictures to latents, and from latents to pictures and to a waveform."""
