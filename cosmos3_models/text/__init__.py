"""From prompts to token ids."""
