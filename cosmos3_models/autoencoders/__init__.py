"""From latents to pixels and to a waveform."""
